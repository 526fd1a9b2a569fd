//! The network namespace: loopback, and routes that lead nowhere.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use super::refusal::{AtStep, Step};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 0x1;
/// Loopback is the first interface of every network namespace.
const LOOPBACK: i32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNREACHABLE: u8 = 7;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_PRIORITY: u16 = 6;
const HEADER: usize = 16;

/// A conversation with the kernel about this network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// Opens it.
    ///
    /// # Errors
    /// As `socket(2)`.
    pub fn open() -> io::Result<Self> {
        // No protocol number means 0, which is NETLINK_ROUTE.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket })
    }

    /// Turns loopback on.
    ///
    /// # Errors
    /// The refusal of step `loopback`.
    pub fn loopback_up(&self) -> Step {
        self.ask(RTM_NEWLINK, 0, &link_up(LOOPBACK)).at("loopback")
    }

    /// Gives loopback one more address, which leads nowhere else.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn add_loopback_address(&self, address: std::net::Ipv4Addr) -> io::Result<()> {
        self.ask(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &loopback_address(address.octets()))
    }

    /// Makes a prefix unreachable.
    ///
    /// # Errors
    /// The refusal of step `network routes`.
    pub fn block(&self, family: AddressFamily, address: &[u8], length: u8) -> Step {
        let body = unreachable(family, address, length);
        self.ask(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body).at("network routes")
    }

    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        message.extend([0; 8]); // Sequence number and sender: one question at a time needs neither.
        message.extend(body);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let mut answer = [0; 512];
        let (length, _) = rustix::net::recv(&self.socket, &mut answer, rustix::net::RecvFlags::empty())?;
        verdict(&answer[..length])
    }
}

fn link_up(index: i32) -> Vec<u8> {
    let mut body = vec![0; 4]; // Family, padding, type.
    body.extend(index.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes()); // Which flags to change.
    body
}

fn loopback_address(address: [u8; 4]) -> Vec<u8> {
    // A prefix of 32 bits, no flags, the scope of the whole world.
    let mut body = vec![AddressFamily::INET.as_raw() as u8, 32, 0, 0];
    body.extend(LOOPBACK.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &address);
    attribute(&mut body, IFA_ADDRESS, &address);
    body
}

fn unreachable(family: AddressFamily, address: &[u8], length: u8) -> Vec<u8> {
    let mut body = vec![family.as_raw() as u8, length, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNREACHABLE, 0, 0, 0, 0];
    attribute(&mut body, RTA_DST, address);
    // Before every other route of the same length.
    attribute(&mut body, RTA_PRIORITY, &1u32.to_ne_bytes());
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend(((4 + value.len()) as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn verdict(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let code = answer.get(HEADER..HEADER + 4).map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::from_raw_os_error(libc::EPROTO)),
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_route_message_has_the_kernels_layout() {
        let body = unreachable(AddressFamily::INET, &[169, 254, 0, 0], 16);
        assert_eq!(body.len(), 12 + 8 + 8);
        assert_eq!(&body[..2], [2, 16]);
        assert_eq!(body[7], RTN_UNREACHABLE);
        assert_eq!(&body[16..20], [169, 254, 0, 0]);
    }

    #[test]
    fn the_kernels_errors_are_told() {
        let mut answer = vec![0; 20];
        answer[4] = 2;
        assert!(verdict(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(verdict(&answer).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(verdict(&[]).is_err());
    }
}
