//! What a command finds around it: variables, the files its program may be, where it starts.

use crate::protocol::Exec;
use crate::runtime::identity::Identity;
use crate::setup::Setup;

/// Where programs are looked for when the command has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables in order; a later one of the same name replaces an earlier one.
#[derive(Debug, Default)]
pub struct Variables(Vec<(Vec<u8>, Vec<u8>)>);

impl Variables {
    /// The base environment, the user's own variables, then the call's.
    pub fn of(setup: &Setup, exec: &Exec, identity: &Identity) -> Self {
        let mut variables = Self::default();
        if !exec.env_clear {
            setup.env.iter().for_each(|(key, value)| variables.set(&key.0, &value.0));
            if identity.uid != setup.agent.uid {
                variables.set(b"HOME", &identity.home);
                variables.set(b"USER", identity.name.as_bytes());
                variables.set(b"LOGNAME", identity.name.as_bytes());
                variables.set(b"SHELL", &identity.shell);
                // Where a machine has another for root, its own programs are in it.
                let path = setup.root_path.as_ref().filter(|_| identity.uid == 0);
                path.into_iter().for_each(|path| variables.set(b"PATH", &path.0));
            }
        }
        exec.env.iter().for_each(|(key, value)| variables.set(&key.0, &value.0));
        variables
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        match self.0.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value.to_vec(),
            None => self.0.push((key.to_vec(), value.to_vec())),
        }
    }

    /// The value of a variable.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_slice())
    }

    /// `NAME=value` texts.
    pub fn texts(&self) -> Vec<Vec<u8>> {
        self.0.iter().map(|(key, value)| [key.as_slice(), b"=", value].concat()).collect()
    }
}

/// The files that a program name may stand for, in the order in which they are tried.
pub fn candidates(program: &[u8], variables: &Variables) -> Vec<Vec<u8>> {
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    let path = variables.get(b"PATH").unwrap_or(DEFAULT_PATH);
    let join = |directory: &[u8]| match directory {
        // An empty entry means the working directory, as everywhere.
        [] => [b"./", program].concat(),
        directory => [directory, b"/", program].concat(),
    };
    path.split(|byte| *byte == b':').map(join).collect()
}

/// The directory that `path` means, seen from `base`.
pub fn resolve(base: &[u8], path: Option<&[u8]>) -> Vec<u8> {
    match path {
        None => base.to_vec(),
        Some(path) if path.starts_with(b"/") => path.to_vec(),
        Some(path) => [base, b"/", path].concat(),
    }
}

/// Whether the call makes sense; otherwise why not.
pub fn check(exec: &Exec) -> Result<(), &'static str> {
    if exec.argv.first().is_none_or(|program| program.0.is_empty()) {
        return Err("argv names no program");
    }
    if exec.argv.iter().any(|arg| arg.0.contains(&0)) {
        return Err("an argument holds a NUL byte");
    }
    if exec.env.iter().any(|(key, _)| key.0.is_empty() || key.0.contains(&b'=') || key.0.contains(&0)) {
        return Err("a variable's name is empty or holds '=' or NUL");
    }
    if exec.env.iter().any(|(_, value)| value.0.contains(&0)) {
        return Err("a variable's value holds a NUL byte");
    }
    if exec.cwd.as_ref().is_some_and(|cwd| cwd.0.is_empty() || cwd.0.contains(&0)) {
        return Err("the working directory is empty or holds a NUL byte");
    }
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::setup::{Agent, Mode};
    use crate::wire::Blob;

    #[test]
    fn later_variables_replace_earlier_ones() {
        let mut variables = Variables::default();
        variables.set(b"A", b"1");
        variables.set(b"B", b"2");
        variables.set(b"A", b"3");
        assert_eq!(variables.texts(), [b"A=3".to_vec(), b"B=2".to_vec()]);
    }

    #[test]
    fn root_beside_another_default_user_has_its_own_path_unless_one_is_set() {
        let blob = |text: &str| Blob::from(text.as_bytes());
        let agent = Agent { name: "ann".into(), uid: 1000, gid: 1000, home: blob("/home/ann") };
        let mut setup = Setup::new(Mode::Guest, "test", agent, blob("/"));
        setup.env = vec![(blob("PATH"), blob("/bin"))];
        setup.root_path = Some(blob("/sbin:/bin"));
        let root = Identity { uid: 0, ..Identity::agent(&setup.agent) };
        let exec = Exec::new([0; 16], vec![blob("x")]);
        let path = |setup: &Setup, identity: &Identity| Variables::of(setup, &exec, identity).get(b"PATH").map(<[u8]>::to_vec);
        assert_eq!(path(&setup, &root).as_deref(), Some(b"/sbin:/bin".as_slice()));
        assert_eq!(path(&setup, &Identity::agent(&setup.agent)).as_deref(), Some(b"/bin".as_slice()));
        setup.set_variable(blob("PATH"), blob("/mine"));
        assert_eq!(path(&setup, &root).as_deref(), Some(b"/mine".as_slice()));
        setup.set_variable(blob("A"), blob("b"));
        setup.agent.uid = 0;
        setup.root_path = Some(blob("/sbin:/bin"));
        assert_eq!(path(&setup, &root).as_deref(), Some(b"/mine".as_slice()));
    }

    #[test]
    fn programs_are_looked_up_in_the_commands_own_path() {
        let mut variables = Variables::default();
        variables.set(b"PATH", b"/a::/b");
        assert_eq!(candidates(b"ls", &variables), [b"/a/ls".to_vec(), b"./ls".to_vec(), b"/b/ls".to_vec()]);
        assert_eq!(candidates(b"./ls", &variables), [b"./ls".to_vec()]);
        assert_eq!(candidates(b"ls", &Variables::default()).len(), 6);
    }

    #[test]
    fn directories_are_relative_to_the_machines_own() {
        assert_eq!(resolve(b"/workspace", None), b"/workspace");
        assert_eq!(resolve(b"/workspace", Some(b"a/b")), b"/workspace/a/b");
        assert_eq!(resolve(b"/workspace", Some(b"/tmp")), b"/tmp");
    }
}
