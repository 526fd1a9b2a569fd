//! Addresses that are never dialled, whatever name resolves to them.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// IPv4 networks that are not the public internet's, and why. The networks for documentation are not among them: they lead
/// nowhere, and tests use them.
const REFUSED4: [(Ipv4Addr, u32, &str); 14] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "this network's"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "a provider's own"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(168, 63, 129, 16), 32, "a metadata service's"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "for protocols"),
    (Ipv4Addr::new(192, 31, 196, 0), 24, "for protocols"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "a relay's"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "for benchmarks"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// Why an address is not dialled; `None` if it may be. Addresses that carry an IPv4 address (mapped, compatible, 6to4,
/// NAT64) are judged by it. An address of this host's own is refused too.
pub fn refused(address: IpAddr) -> Option<&'static str> {
    special(address).or_else(|| is_own(address).then_some("this host's own"))
}

fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special4(address),
        IpAddr::V6(address) => special6(address),
    }
}

fn special4(address: Ipv4Addr) -> Option<&'static str> {
    let bits = u32::from(address);
    REFUSED4.iter().find(|(network, length, _)| (bits ^ u32::from(*network)) >> (32 - length) == 0).map(|(_, _, why)| *why)
}

fn special6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        special4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("no address"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        [0, 0, 0, 0, 0, 0xffff, high, low] => embedded(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        [0x2001, 0..0x200, ..] => Some("for protocols"),
        [0x3fff, ..] => Some("for documentation"),
        // What else is global begins with the bits 001.
        [first, ..] if first >> 13 == 1 => None,
        [first, ..] if first >> 9 == 0x7e => Some("private"),
        [first, ..] if first >> 6 == 0x3fa => Some("link-local"),
        [first, ..] if first >> 8 == 0xff => Some("multicast"),
        _ => Some("reserved"),
    }
}

/// Whether the kernel lets this process be at that address. Where it says anything else than that nobody here has it, it is taken for
/// this host's: want of descriptors must open no way to it.
fn is_own(address: IpAddr) -> bool {
    is_taken_for_own(UdpSocket::bind((address, 0)).err().map(|error| error.kind()))
}

fn is_taken_for_own(refusal: Option<ErrorKind>) -> bool {
    refusal != Some(ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn only_an_address_that_nobody_here_has_is_another_hosts() {
        assert!(!is_own("203.0.113.9".parse().unwrap()));
        assert!(is_own("127.0.0.1".parse().unwrap()));
        assert!(!is_taken_for_own(Some(ErrorKind::AddrNotAvailable)));
        for want in [std::io::Error::from_raw_os_error(24).kind(), ErrorKind::PermissionDenied, ErrorKind::OutOfMemory] {
            assert!(is_taken_for_own(Some(want)), "{want:?}");
        }
    }

    #[test]
    fn special_addresses_are_refused_in_every_spelling() {
        for bad in [
            "0.0.0.0",
            "10.1.2.3",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2001::1",
            "fc00::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
            "5f00::1",
        ] {
            assert!(special(bad.parse().unwrap()).is_some(), "{bad} may be dialled");
        }
    }

    #[test]
    fn public_addresses_are_not() {
        for good in [
            "1.1.1.1",
            "9.255.255.255",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.2.1",
            "192.1.0.1",
            "198.17.0.1",
            "198.20.0.1",
            "203.0.113.1",
            "2606:4700::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
            "2001:db8::1",
        ] {
            assert_eq!(special(good.parse().unwrap()), None, "{good}");
        }
    }

    #[test]
    fn the_hosts_own_addresses_are_refused() {
        assert!(is_own("127.0.0.1".parse().unwrap()) && !is_own("198.51.100.77".parse().unwrap()));
    }
}
