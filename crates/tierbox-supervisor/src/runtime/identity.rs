//! Who a command or a file worker is.

use std::io::{self, Read};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, getgid, getuid};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use crate::protocol::NotStarted;
use crate::setup::Agent;

/// The most of `/etc/passwd` or `/etc/group` that is looked at.
const MAX_DATABASE: u64 = 4 << 20;

/// The most supplementary groups of a user (the kernel takes 65536).
const MAX_GROUPS: usize = 1024;

/// A user inside the machine, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name, or the number as text where it has none.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: Vec<u8>,
    /// Login shell.
    pub shell: Vec<u8>,
}

impl Identity {
    /// The machine's default user.
    pub fn agent(agent: &Agent) -> Self {
        Self {
            name: agent.name.clone(),
            uid: agent.uid,
            gid: agent.gid,
            groups: vec![agent.gid],
            home: agent.home.0.clone(),
            shell: b"/bin/sh".to_vec(),
        }
    }

    /// The user of this name or number, from the machine's own `/etc/passwd` and `/etc/group`.
    ///
    /// # Errors
    /// [`NotStarted::UnknownUser`].
    pub fn lookup(user: &str) -> Result<Self, NotStarted> {
        Self::find(user, &database("/etc/passwd"), &database("/etc/group"))
    }

    fn find(user: &str, passwd: &[u8], group: &[u8]) -> Result<Self, NotStarted> {
        let number = user.parse::<u32>().ok().filter(|number| *number != u32::MAX);
        let accounts = || lines(passwd).filter_map(account);
        let by_name = accounts().find(|account| account.name == user);
        let by_number = || accounts().find(|account| Some(account.uid) == number);
        let mut found = match by_name.or_else(by_number) {
            Some(found) => found,
            None => nameless(number.ok_or(NotStarted::UnknownUser)?),
        };
        for gid in lines(group).filter_map(|line| membership(line, &found.name)) {
            if !found.groups.contains(&gid) && found.groups.len() < MAX_GROUPS {
                found.groups.push(gid);
            }
        }
        Ok(found)
    }

    /// Becomes this user for good: groups, ids, no capability (root keeps the bounding set's on its next exec).
    ///
    /// Makes only async-signal-safe calls, so it may run between fork and exec.
    ///
    /// # Errors
    /// The first call that failed.
    pub fn assume(&self) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let mut groups = [Gid::ROOT; MAX_GROUPS];
        for (slot, group) in groups.iter_mut().zip(&self.groups) {
            *slot = Gid::from_raw(*group);
        }
        match thread::set_thread_groups(&groups[..self.groups.len().min(MAX_GROUPS)]) {
            // Without the right to change groups nobody else can be assumed either; the own groups then stay.
            Err(Errno::PERM) if getuid() == uid && getgid() == gid => {}
            result => result?,
        }
        thread::set_thread_res_gid(gid, gid, gid)?;
        thread::set_thread_res_uid(uid, uid, uid)?;
        let kept = if self.uid == 0 { bounded_capabilities()? } else { CapabilitySet::empty() };
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
        // Ambient capabilities go with the inheritable ones.
        match thread::set_capabilities(None, sets) {
            Err(Errno::PERM) if self.uid != 0 && thread::capabilities(None)?.permitted.is_empty() => Ok(()),
            result => Ok(result?),
        }
    }
}

/// The number of a group of this name or number, from the machine's own `/etc/group`. A number needs no entry.
pub fn group(name: &str) -> Option<u32> {
    group_in(name, &database("/etc/group"))
}

fn group_in(name: &str, database: &[u8]) -> Option<u32> {
    let named = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    };
    let by_name = lines(database).find_map(named);
    by_name.or_else(|| name.parse().ok()).filter(|number| *number != u32::MAX)
}

/// What root may keep: with no_new_privs, exec gives nothing that was not permitted before.
fn bounded_capabilities() -> io::Result<CapabilitySet> {
    let permitted = thread::capabilities(None)?.permitted;
    let bounded = |capability: &CapabilitySet| thread::capability_is_in_bounding_set(*capability).unwrap_or(false);
    Ok(permitted.iter().filter(bounded).collect())
}

/// A file of the machine, which may be hostile: not there, a pipe, endless.
fn database(path: &str) -> Vec<u8> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(fd) = rustix::fs::open(path, flags, Mode::empty()) else { return Vec::new() };
    let regular = rustix::fs::fstat(&fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    let mut contents = Vec::new();
    if regular {
        // What could be read counts, as for every program that reads these files.
        let _ = std::fs::File::from(fd).take(MAX_DATABASE).read_to_end(&mut contents);
    }
    contents
}

fn lines(database: &[u8]) -> impl Iterator<Item = &str> {
    database.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok())
}

fn account(line: &str) -> Option<Identity> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
    if line.contains('\0') {
        return None;
    }
    let gid = gid.parse().ok()?;
    let or = |text: &str, default: &str| if text.is_empty() { default } else { text }.as_bytes().to_vec();
    Some(Identity {
        name: (*name).to_owned(),
        uid: uid.parse().ok().filter(|uid| *uid != u32::MAX)?,
        gid,
        groups: vec![gid],
        home: or(home, "/"),
        shell: or(shell, "/bin/sh"),
    })
}

fn membership(line: &str, user: &str) -> Option<u32> {
    let mut fields = line.split(':').skip(2);
    let gid = fields.next()?.parse().ok()?;
    fields.next()?.split(',').any(|member| member == user).then_some(gid)
}

fn nameless(number: u32) -> Identity {
    Identity {
        name: number.to_string(),
        uid: number,
        gid: number,
        groups: vec![number],
        home: b"/".to_vec(),
        shell: b"/bin/sh".to_vec(),
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1000:1000::/home/ann:\n\xff\xfe:x:1:1::/:\n7:x:9:9::/nine:/bin/sh\n";
    const GROUP: &[u8] = b"root:x:0:\nann:x:1000:\nwheel:x:10:root,ann\nodd:x:-3:ann\naudio:x:29:bann,ann\n";

    #[test]
    fn names_numbers_and_groups() {
        let ann = Identity::find("ann", PASSWD, GROUP).unwrap();
        assert_eq!((ann.uid, ann.gid, ann.groups.as_slice()), (1000, 1000, [1000, 10, 29].as_slice()));
        assert_eq!((ann.home.as_slice(), ann.shell.as_slice()), (b"/home/ann".as_slice(), b"/bin/sh".as_slice()));
        assert_eq!(Identity::find("1000", PASSWD, GROUP).unwrap(), ann);
    }

    #[test]
    fn groups_have_names_and_numbers() {
        assert_eq!((group_in("audio", GROUP), group_in("10", GROUP), group_in("4711", GROUP)), (Some(29), Some(10), Some(4711)));
        for odd in ["", "nobody-here", "4294967295", "-3", "odd"] {
            assert_eq!(group_in(odd, GROUP), None, "{odd:?}");
        }
    }

    #[test]
    fn a_name_goes_before_a_number_and_a_bare_number_is_a_user() {
        assert_eq!(Identity::find("7", PASSWD, GROUP).unwrap().uid, 9);
        let bare = Identity::find("4242", PASSWD, GROUP).unwrap();
        assert_eq!((bare.uid, bare.gid, bare.groups.as_slice()), (4242, 4242, [4242].as_slice()));
    }

    #[test]
    fn unknown_names_and_the_invalid_number() {
        for user in ["nobody-here", "4294967295", "-1", ""] {
            assert_eq!(Identity::find(user, PASSWD, GROUP), Err(NotStarted::UnknownUser), "{user:?}");
        }
    }
}
