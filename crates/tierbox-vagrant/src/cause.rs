//! What went wrong, in Vagrant's own words, and what to do about it.

use tierbox_core::{Error, ErrorKind};

use crate::BACKEND;
use crate::record::{Record, shown};

/// How many of its last lines go into an error.
const LAST_LINES: usize = 12;

/// The class of an end that Vagrant had nothing to say of.
pub const ENDED: &str = "Ended";

/// A failure that Vagrant ended with.
pub struct Failure<'a> {
    class: &'a str,
    message: &'a str,
}

impl Failure<'_> {
    /// Whether something that ran in a machine failed: what it said is of that machine, and hostile besides.
    fn is_guests(&self) -> bool {
        let (class, message) = (self.class.to_lowercase(), self.message.to_lowercase());
        ["ansible", "chef", "puppet", "salt", "provision"].iter().any(|tool| class.contains(tool))
            || message.contains("ssh command responded with a non-zero exit status")
    }

    /// Whether another call of Vagrant works on the machine.
    pub fn is_locked(&self) -> bool {
        self.class.ends_with("MachineLocked") || self.class.ends_with("MachineActionLockedError")
    }
}

/// The error that a call ended with, if it did.
pub fn failure(records: &[Record]) -> Option<Failure<'_>> {
    let record = records.iter().rev().find(|record| record.kind == "error-exit")?;
    Some(Failure { class: record.error_class().unwrap_or_default(), message: record.message().unwrap_or_default() })
}

/// Errors of Ruby's that come of what others do at the same time: such as libvirt's, when a network of somebody else's goes while a
/// plugin reads the list of all. One that a Vagrantfile raises itself would come again.
const ACCIDENTS: &[&str] = &["(Libvirt::", "(Fog::", "(Errno::", "(Net::SSH::", "(IOError)", "(EOFError)"];

/// Whether Vagrant ended with such an error, which nobody there had foreseen.
pub fn is_accident(records: &[Record]) -> bool {
    let is_unforeseen = failure(records).is_some_and(|failure| failure.class == ENDED);
    let is_one = |line: &str| line.contains(":in ") && ACCIDENTS.iter().any(|class| line.contains(class));
    is_unforeseen && records.iter().filter_map(Record::message).flat_map(str::lines).any(is_one)
}

/// The last lines that were said, each on a line of its own after a newline; empty if nothing was said.
pub fn last_lines<'a>(records: impl IntoIterator<Item = &'a Record>) -> String {
    let said = records.into_iter().filter_map(Record::message).flat_map(str::lines).map(shown);
    let mut lines: Vec<String> = said.filter(|line| !line.is_empty() && !is_frame(line)).collect();
    lines.dedup();
    let from = lines.len().saturating_sub(LAST_LINES);
    lines[from..].iter().map(|line| format!("\n  {line}")).collect()
}

/// Whether a line tells where in a Ruby program an error came by: of such there are dozens after the one that says what it is.
fn is_frame(line: &str) -> bool {
    line.starts_with("from ") && line.contains(":in ")
}

/// A known cause.
struct Known {
    /// Any of these, in lower case, in the error's class or in what was said.
    signs: &'static [&'static str],
    kind: ErrorKind,
    what: &'static str,
    remedy: &'static str,
}

/// Signs that count in the error itself alone.
const VAGRANTFILE: &[&str] = &["vagrantfile", "configinvalid"];

const KNOWN: &[Known] = &[
    Known {
        signs: &["provider 'libvirt' could not be found", "providernotfound", "provider could not be found", "providernotusable"],
        kind: ErrorKind::MissingEngine,
        what: "the provider is not installed, or not usable here",
        remedy: "install its plugin (vagrant plugin install …, or your distribution's package) and the hypervisor",
    },
    Known {
        signs: &["libvirt-sock", "virconnectopen", "failed to connect socket", "error while connecting to libvirt"],
        kind: ErrorKind::MissingEngine,
        what: "libvirt does not run, or you may not use it",
        remedy: "start libvirtd (systemctl start libvirtd), and join the group libvirt",
    },
    Known {
        signs: &["could not access kvm", "type=kvm", "/dev/kvm", "vt-x is", "hardware acceleration"],
        kind: ErrorKind::HostUnable,
        what: "this host has no hardware virtualisation that you may use",
        remedy: "enable it in the firmware, give yourself /dev/kvm, or set `v.driver = \"qemu\"` for software emulation",
    },
    Known {
        signs: &["no space left", "not enough free space", "disk quota exceeded"],
        kind: ErrorKind::NoSpace,
        what: "this host's disk is full",
        remedy: "free space where boxes and machines' disks are (VAGRANT_HOME, the storage pool)",
    },
    Known {
        signs: &["forwardportcollision", "address already in use", "cannot forward the specified ports"],
        kind: ErrorKind::HostUnable,
        what: "a port that the machine wants on this host is in use",
        remedy: "end what uses it, or leave `auto_correct` on for the forwarded port",
    },
    Known {
        signs: &["is already in use by interface", "networknameandaddressmismatch", "network is already in use"],
        kind: ErrorKind::HostUnable,
        what: "a network of the same addresses exists on this host",
        remedy: "end the other environment, take N1 or N2 (where networks have no address on the host), or make addresses of the \
                 Vagrantfile depend on a variable",
    },
    Known {
        signs: &["boxnotfound", "boxadd", "box could not be found", "couldn't open file"],
        kind: ErrorKind::HostUnable,
        what: "the box is missing, or not there for this provider",
        remedy: "add it with `vagrant box add`, and compare `vagrant box list` with the Vagrantfile",
    },
    Known {
        signs: &["vmboottimeout", "timed out while waiting for the machine to boot"],
        kind: ErrorKind::Timeout,
        what: "the machine did not answer in the Vagrantfile's boot_timeout",
        remedy: "raise `config.vm.boot_timeout`, or look at the machine's console",
    },
    Known {
        signs: &[
            "tierboxshim::refused",
            "a closed network",
            "tierbox uses this host's own libvirt",
            "cannot be kept in a pool",
            "at a very early stage",
            "syntax error in the following vagrantfile",
        ],
        kind: ErrorKind::InvalidProfile,
        what: "the Vagrantfile cannot be used as it is",
        remedy: "try it by itself: vagrant validate",
    },
    Known {
        signs: VAGRANTFILE,
        kind: ErrorKind::InvalidProfile,
        what: "the Vagrantfile cannot be used as it is",
        remedy: "try it by itself: vagrant validate",
    },
];

/// What a machine says of a disk or a port is not this host's.
const GUESTS: Known = Known {
    signs: &[],
    kind: ErrorKind::HostUnable,
    what: "a command in the machine failed, such as one of a provisioner",
    remedy: "mend the provisioner, and mind that at N2 it has no network; what it said is below",
};

/// The error for a call that failed.
pub fn explain(verb: &str, records: &[Record]) -> Error {
    let failure = failure(records);
    let (class, message) = failure.as_ref().map_or(("", ""), |failure| (failure.class, failure.message));
    // The error's own words decide; what was said before only where they say nothing.
    let own = format!("{class} {message}").to_lowercase();
    let all = last_lines(records.iter().filter(|record| !record.is_of_guest())).to_lowercase();
    let signs_in = |text: &str| KNOWN.iter().find(|known| known.signs.iter().any(|sign| text.contains(sign)));
    // Whatever goes wrong, a Vagrantfile is spoken of on the way.
    let known = match failure.as_ref().is_some_and(Failure::is_guests) {
        true => Some(&GUESTS),
        false => signs_in(&own).or_else(|| signs_in(&all).filter(|known| known.signs != VAGRANTFILE)),
    };
    let kind = known.map_or(ErrorKind::HostUnable, |known| known.kind);
    let what = known.map_or_else(|| "it says why below".to_owned(), |known| known.what.to_owned());
    let remedy = known.map_or("run it by hand to see more: vagrant up --debug", |known| known.remedy);
    Error::new(kind, "run vagrant", format!("`vagrant {verb}` failed: {what}{}", last_lines(records)))
        .with_backend(BACKEND)
        .with_help(remedy)
        .with_context("class", class)
}

#[cfg(test)]
mod unit {
    use super::*;

    fn failed(class: &str, message: &str) -> Error {
        let said = Record::read("1795524438,default,ui,info,==> default: Creating domain");
        let end = Record { machine: String::new(), kind: "error-exit".into(), data: vec![class.into(), message.into()] };
        explain("up", &[said, end])
    }

    #[test]
    fn known_causes_are_explained_with_the_last_lines() {
        for (class, message, kind, what) in [
            ("Vagrant::Errors::BoxNotFound", "The box 'x' could not be found.", ErrorKind::HostUnable, "box is missing"),
            ("Vagrant::Errors::ProviderNotFound", "", ErrorKind::MissingEngine, "provider is not installed"),
            (
                "Fog::Errors::Error",
                "Failed to connect socket to '/var/run/libvirt/libvirt-sock'",
                ErrorKind::MissingEngine,
                "libvirt",
            ),
            ("Vagrant::Errors::ForwardPortCollision", "", ErrorKind::HostUnable, "port"),
            ("X", "No space left on device @ io_write", ErrorKind::NoSpace, "full"),
            ("Vagrant::Errors::VagrantfileLoadError", "", ErrorKind::InvalidProfile, "Vagrantfile"),
        ] {
            let error = failed(class, message);
            assert_eq!(error.kind(), kind, "{class}: {error}");
            assert!(error.message().contains(what) && error.message().contains("Creating domain"), "{class}: {error}");
        }
    }

    #[test]
    fn what_a_machine_says_is_no_cause_on_this_host() {
        let said = Record::read("1795524438,default,ui,detail,    default: cp: No space left on device");
        let end = |class: &str, message: &str| Record {
            machine: String::new(),
            kind: "error-exit".into(),
            data: vec![class.into(), message.into()],
        };
        let status = "The following SSH command responded with a non-zero exit status.\n\necho; address already in use";
        for end in [
            end("Vagrant::Errors::VagrantError", status),
            end("VagrantPlugins::Ansible::Errors::AnsibleCommandFailed", "no space left"),
        ] {
            let error = explain("up", &[said.clone(), end]);
            assert!(error.kind() == ErrorKind::HostUnable && error.message().contains("in the machine failed"), "{error}");
        }
        // Nor where the reason of the end is another.
        assert_eq!(explain("up", &[said.clone(), end("Odd", "something else")]).kind(), ErrorKind::HostUnable);
        let host = Record::read("1795524438,default,ui,error,No space left on device @ io_write");
        assert_eq!(explain("up", &[said, host, end("Odd", "something else")]).kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn an_unknown_cause_still_shows_what_was_said() {
        let error = failed("Weird", "odd\nthing");
        assert!(error.message().contains("\n  odd\n  thing"), "{error}");
        assert!(failure(&[Record::read("1795524438,,ui,info,fine")]).is_none());
    }

    #[test]
    fn an_error_of_ruby_is_not_hidden_by_where_it_came_by() {
        let mut said = vec![Record::read("/v/Vagrantfile:9:in `size_of': Call to virFoo failed: no such thing (Libvirt::Error)")];
        said.extend((1..40).map(|line| Record::read(&format!("\tfrom /usr/lib/ruby/vagrant/warden.rb:{line}:in `call'"))));
        said.push(Record { machine: String::new(), kind: "error-exit".into(), data: vec![ENDED.into(), "status 1".into()] });
        assert!(is_accident(&said) && !is_accident(&said[..1]) && !is_accident(&said[40..]));
        let mut own = said.clone();
        own[0] = Record::read("/v/Vagrantfile:9:in `block': far enough (RuntimeError)");
        assert!(!is_accident(&own));
        let error = explain("up", &said);
        assert!(error.message().contains("no such thing (Libvirt::Error)\n  status 1"), "{error}");
    }

    #[test]
    fn a_busy_machine_is_told_apart() {
        let record = Record::read("1795524438,,error-exit,Vagrant::Errors::MachineActionLockedError,busy");
        assert!(failure(std::slice::from_ref(&record)).unwrap().is_locked());
    }
}
