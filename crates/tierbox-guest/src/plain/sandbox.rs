//! The sandbox over a plain transport.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tierbox_core::{
    ByteReader, ByteStream, Capabilities, Completed, DialTarget, DirEntry, Error, ErrorKind, ExecHandle, ExecId, ExecInfo,
    ExecRequest, FileMeta, GuestPath, KillDomain, KillReason, Leftovers, Limits, NotStartedCause, OnExceed, Outcome, ReadOptions,
    Result, Sandbox, Signal, Stdin, UserSupport, WriteOptions, names_a_secret,
};
use tokio::io::AsyncReadExt;

use super::call::Caller;
use super::exec::{HELD, Launch, Order, PlainHandle, Yard};
use super::probe::{self, Machine};
use super::script::{BECOME, PATH};
use super::words::{Environment, Words, quote, stands_in_an_argument};
use super::{PlainConfig, PlainOutput, PlainRun, PlainTransport};
use crate::errors::lock;
use crate::install::Account;

/// The kernel's bounds for one argument or variable, and for all of them together (with a third of it to spare for a machine whose
/// stack is limited as usual).
const LONGEST_ARGUMENT: usize = 128 << 10;
const ARGUMENTS: usize = 2 << 20;
/// What root inside keeps: docker's default less what traces, makes raw packets, nodes or roots.
const BOUNDED_ROOT: &str = "--no-new-privs --inh-caps=-all --bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,\
                            +setuid,+setpcap,+net_bind_service,+audit_write,+setfcap";
/// Becomes the command without `env`, in a shell that exports nothing unasked but what it can be told not to.
const DIRECTLY: &str = "if [ -z \"${BASH_VERSION-}${KSH_VERSION-}${YASH_VERSION-}${ZSH_VERSION-}\" ]; then \
                        unset OLDPWD PWD SHLVL; exec \"$@\" 3>&-; fi\n";
/// Names the file that was found, where whoever starts programs has some in itself, and takes these whatever `PATH` says.
const FOUND: &str = "case $1 in */*) ;; *) shift; set -- \"$found\" \"$@\";; esac\n";
/// How long a small script of ours may take.
const BRIEF: Duration = Duration::from_secs(60);

/// No secret stands in an argument of a process, not even for a moment.
fn check_secrets(env: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<()> {
    let odd = env.keys().find(|name| stands_in_an_argument(name) && names_a_secret(&String::from_utf8_lossy(name)));
    match odd {
        None => Ok(()),
        Some(name) => Err(Error::new(
            ErrorKind::InvalidInput,
            "exec",
            format!(
                "the secret {} would stand in an argument of a process inside, since no shell can make it",
                name.escape_ascii()
            ),
        )
        .with_help("name it with letters, digits and `_`")),
    }
}

/// Whether [`DIRECTLY`] does: it finds programs by the command's own `PATH`, and has no options.
fn is_direct(request: &ExecRequest, environment: &Environment) -> bool {
    let names_path = !environment.unset.split(' ').any(|word| word == "PATH");
    names_path && environment.assigned.is_empty() && !request.argv[0].starts_with(b"-")
}

/// A machine behind a [`PlainTransport`]. Clones are the same sandbox.
#[derive(Clone)]
pub struct PlainSandbox {
    config: Arc<PlainConfig>,
    capabilities: Arc<Capabilities>,
    pub(super) machine: Arc<Machine>,
    pub(super) yard: Arc<Yard>,
    pub(super) workdir: Arc<[u8]>,
    users: Arc<Mutex<BTreeMap<String, Option<Account>>>>,
}

impl std::fmt::Debug for PlainSandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlainSandbox").field("name", &self.config.name).finish_non_exhaustive()
    }
}

impl PlainSandbox {
    /// Looks at the machine, makes a directory of its own there, and the working directory if it does not exist.
    ///
    /// What the sandbox can do in the end is in its [capabilities](Sandbox::capabilities): of the given ones, as other users
    /// only where the machine has `setpriv` and scripts run as root; a cgroup for each command only where root can make one.
    ///
    /// # Errors
    /// `Unsupported` where the machine lacks a tool that is needed, or the default user is not the one who runs scripts and
    /// cannot be assumed; `InvalidInput` for a user that the machine does not have; the transport's own.
    pub async fn open(transport: Arc<dyn PlainTransport>, config: PlainConfig) -> Result<Self> {
        let caller = Caller::new(transport)?;
        let machine = probe::ask(&caller, &config).await?;
        let switches = machine.root && machine.setpriv.is_some();
        if machine.root && machine.facts.user.uid != 0 && !switches {
            let message = format!("commands cannot run as {} here", machine.facts.user.name);
            return Err(Error::new(ErrorKind::Unsupported, "open sandbox", message)
                .with_help("install util-linux in the machine, whose setpriv can, or run commands as root"));
        }
        let users = if switches { config.capabilities.users } else { UserSupport::DefaultOnly };
        let archives = config.capabilities.archives && machine.tar;
        let kill_domain = match (config.groups, &machine.group) {
            (false, _) => config.capabilities.kill_domain,
            (true, Some(_)) => KillDomain::Cgroup,
            (true, None) => KillDomain::Session,
        };
        let capabilities = Capabilities { users, archives, kill_domain, ..config.capabilities.clone() };
        let workdir = config.workdir.clone().unwrap_or_else(|| machine.facts.user.home.clone());
        let yard = Yard::new(caller, machine.base.clone(), machine.group.clone());
        let sandbox = Self {
            config: Arc::new(config),
            capabilities: Arc::new(capabilities),
            machine: Arc::new(machine),
            yard,
            workdir: workdir.into_bytes().into(),
            users: Arc::default(),
        };
        sandbox.make_workdir().await?;
        Ok(sandbox)
    }

    /// Nothing more is run: everything that is under way or comes is `Lost`. For the machine's end.
    pub fn close(&self) {
        self.yard.caller.close();
    }

    /// The cgroup of all its commands, where they have one.
    pub fn group(&self) -> Option<&str> {
        self.machine.group.as_deref()
    }

    /// Removes what the sandbox keeps in the machine, for machines that live on.
    ///
    /// # Errors
    /// The transport's own.
    pub async fn remove(&self) -> Result<()> {
        let groups = self.machine.group.as_ref().map(|group| format!("rmdir {group}/* {group} 2>/dev/null\n"));
        let script = format!("PATH={PATH}; rm -rf {}\n{}", self.machine.base, groups.unwrap_or_default());
        self.yard.caller.run(PlainRun::new(script, Bytes::new(), BRIEF), "remove sandbox").await.map(drop)
    }

    async fn make_workdir(&self) -> Result<()> {
        let mut words = Words::default();
        let dir = words.word(&self.workdir);
        let user = &self.machine.facts.user;
        // If it cannot be made, each command that needs it says so.
        let script = format!(
            "PATH={PATH}; {}umask 022; [ -d {dir} ] || {{ mkdir -p -- {dir} && chown {}:{} {dir}; }}\n",
            words.before, user.uid, user.gid
        );
        self.yard.caller.run(PlainRun::new(script, Bytes::new(), BRIEF), "open sandbox").await.map(drop)
    }

    fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| error.with_backend(self.config.backend))
    }

    fn require(&self, declared: bool, operation: &'static str, what: &str) -> Result<()> {
        if declared { Ok(()) } else { Err(Error::unsupported(operation, what)) }
    }

    fn files(&self, operation: &'static str, path: &GuestPath) -> Result<()> {
        self.require(self.capabilities.files, operation, "access to files")?;
        path.validate()?;
        if self.yard.caller.is_closed() {
            return Err(Error::new(ErrorKind::Lost, operation, "the sandbox was stopped"));
        }
        Ok(())
    }

    fn check_exec(&self, request: &ExecRequest) -> Result<()> {
        request.validate()?;
        self.require(!matches!(request.stdin, Stdin::Stream), "exec", "writing to stdin while a command runs")?;
        self.require(request.pty.is_none(), "exec", "a pseudo-terminal")?;
        self.require(request.idle_timeout.is_none(), "exec", "a limit on silence")?;
        self.require(request.confine.is_none(), "exec", "a command that is kept to named executables")?;
        let other = request.user.as_ref().is_some_and(|user| !self.is_default(user));
        self.require(self.capabilities.users == UserSupport::Any || !other, "exec", "running a command as another user")?;
        check_secrets(&request.env)?;
        if self.yard.caller.is_closed() {
            return Err(Error::new(ErrorKind::Lost, "exec", "the sandbox was stopped"));
        }
        Ok(())
    }

    fn is_default(&self, user: &str) -> bool {
        let own = &self.machine.facts.user;
        user == own.name || user == own.uid.to_string()
    }

    /// The user of a request; `None` if the machine has none of that name.
    async fn account(&self, user: Option<&str>) -> Result<Option<Account>> {
        let Some(user) = user.filter(|user| !self.is_default(user)) else { return Ok(Some(self.machine.facts.user.clone())) };
        if let Some(known) = lock(&self.users).get(user).filter(|known| known.is_some()) {
            return Ok(known.clone());
        }
        let account = probe::account(&self.yard.caller, user).await?;
        lock(&self.users).insert(user.to_owned(), account.clone());
        Ok(account)
    }

    /// A script of ours that is run as the default user.
    pub(super) fn as_user(&self, script: String) -> String {
        match self.switch(&self.machine.facts.user) {
            Some(switch) => format!("exec {switch} /bin/sh -c {}\n", quote(&script)),
            None => script,
        }
    }

    /// What becomes a user, unless that is who runs scripts.
    fn switch(&self, user: &Account) -> Option<String> {
        let setpriv = self.machine.setpriv.as_ref().filter(|_| self.machine.root)?;
        if user.uid == 0 {
            // Where commands are to be held, root's are held too.
            return self.machine.group.is_some().then(|| format!("{setpriv} {BOUNDED_ROOT} --"));
        }
        let known = user.name != user.uid.to_string();
        let groups = if known { "--init-groups" } else { "--clear-groups" };
        // By name where it has one, which `--init-groups` needs.
        let name = if known { quote(&user.name) } else { user.uid.to_string() };
        Some(format!("{setpriv} --reuid={name} --regid={} {groups} --inh-caps=-all --", user.gid))
    }

    /// Every variable of a command.
    fn variables(&self, request: &ExecRequest, user: &Account) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut all = BTreeMap::new();
        if !request.env_clear {
            let facts = &self.machine.facts;
            let lang = facts.lang.as_deref().unwrap_or("C.UTF-8");
            let path = if user.uid == 0 { &facts.path_of_root } else { &facts.path };
            let base = [("PATH", path.as_str()), ("LANG", lang)];
            let own = [("HOME", &user.home), ("USER", &user.name), ("LOGNAME", &user.name), ("SHELL", &user.shell)];
            let text = |text: &str| text.as_bytes().to_vec();
            all.extend(base.iter().map(|(key, value)| (text(key), text(value))));
            let default = user.uid == facts.user.uid;
            all.extend(own.iter().map(|(key, value)| (text(key), text(value))));
            all.extend(
                self.config
                    .env
                    .iter()
                    .filter(|(key, _)| default || !own.iter().any(|(name, _)| name.as_bytes() == *key))
                    .cloned(),
            );
        }
        all.extend(request.env.clone());
        all
    }

    /// What becomes the command, from a script of ours that runs in a shell of its own. `None` if it is too big.
    ///
    /// Neither arguments nor variables stand in the arguments of anything but the command: the script goes through a pipe, and
    /// variables are exported by the shell that becomes the command.
    fn prepare(&self, request: &ExecRequest, user: &Account) -> Option<Launch> {
        let env = self.variables(request, user);
        let sizes = || request.argv.iter().map(Vec::len).chain(env.iter().map(|(key, value)| key.len() + value.len() + 1));
        if sizes().any(|size| size >= LONGEST_ARGUMENT) || sizes().map(|size| size + 9).sum::<usize>() > ARGUMENTS {
            return None;
        }
        let mut words = Words::default();
        let argv: Vec<String> = request.argv.iter().map(|arg| words.word(arg)).collect();
        let search = env.get(b"PATH".as_slice()).map_or(PATH.as_bytes(), Vec::as_slice);
        let program = (user.name.clone(), request.argv[0].clone(), search.to_vec());
        let known = if self.yard.knows(&program) { "1" } else { "" };
        let (search, cwd) = (words.word(search), words.word(&self.absolute(request.cwd.as_ref())));
        let environment = words.environment(&env);
        // What looks like a variable would be taken for one.
        let called = if request.argv[0].contains(&b'=') { "set -- /bin/sh -c 'exec \"$0\" \"$@\"' \"$@\"\n" } else { "" };
        let (env, limits) = (&self.machine.env, self.limits_script());
        let found = if self.machine.applets { FOUND } else { "" };
        // The shell has read all of it, to the last brace, when its input becomes the command's.
        let script = format!(
            "{{\nexec 0<&8 8<&-\nunset LC_ALL OLDPWD PWD SHLVL\nPATH={PATH}; LC_ALL=C\n{}set -- {}\nCWD={cwd}; SEARCH={search}; KNOWN={known}\n{BECOME}{limits}\n\
             {found}{called}{}{}{}exec {env} {} -- {} \"$@\" 3>&-\n}}\n",
            words.before,
            argv.join(" "),
            environment.exported,
            environment.last,
            if is_direct(request, &environment) { DIRECTLY } else { "" },
            environment.unset,
            environment.assigned.join(" "),
        );
        let switch = self.switch(user).unwrap_or_default();
        Some(Launch {
            // Before anybody has chosen a locale: it takes longer to read than to use.
            reader: format!(
                "[ -n \"${{TIERBOX_KEPT-}}\" ] || exec $SETSID {switch} {env} -i /bin/sh\nexec $SETSID {switch} /bin/sh"
            ),
            script: quote(&script),
            setsid: self.machine.setsid.clone().unwrap_or_default(),
            program,
        })
    }

    fn absolute(&self, path: Option<&GuestPath>) -> Vec<u8> {
        match path.map(GuestPath::as_bytes) {
            None => self.workdir.to_vec(),
            Some(path) if path.starts_with(b"/") => path.to_vec(),
            Some(path) => [&self.workdir, b"/".as_slice(), path].concat(),
        }
    }

    fn limits_script(&self) -> String {
        let limits = &self.config.limits;
        // Shells count files in blocks of 512 bytes.
        let file = limits.file_size.map(|limit| format!("ulimit -f {}; ", limit.max.div_ceil(512)));
        let open = limits.open_files.map(|limit| format!("ulimit -n {}; ", limit.max));
        let bounds = &self.config.bounds;
        let memory = bounds.memory.map(|bytes| format!("ulimit -v {}; ", bytes.div_ceil(1024)));
        let time = bounds.time.map(|time| format!("ulimit -t {}; ", time.as_secs().max(1)));
        [file, open, memory, time].map(Option::unwrap_or_default).concat()
    }

    async fn launch(&self, request: ExecRequest) -> Result<PlainHandle> {
        self.launch_with(request, false, None).await
    }

    /// A command of our own, which may print as much as it likes, with a file of our own as input.
    pub(super) async fn launch_own(&self, request: ExecRequest, file: Option<String>) -> Result<PlainHandle> {
        self.launch_with(request, true, file).await
    }

    async fn launch_with(&self, mut request: ExecRequest, internal: bool, file: Option<String>) -> Result<PlainHandle> {
        self.check_exec(&request)?;
        let id = crate::exec::new_id()?;
        let never = |cause| Ok(PlainHandle::never(&self.yard, id, cause));
        let Some(user) = self.account(request.user.as_deref()).await? else { return never(NotStartedCause::UnknownUser) };
        let Some(launch) = self.prepare(&request, &user) else { return never(NotStartedCause::TooBig) };
        // What was given for this command alone may be a secret, and so may the profile's variables.
        let given = matches!(request.stdin, Stdin::Bytes(_)) || !request.env.is_empty() || !self.config.env.is_empty();
        let limits = self.yard.caller.limits();
        let (stdin, input) = match std::mem::take(&mut request.stdin) {
            _ if file.is_some() => (file, Bytes::new()),
            Stdin::Bytes(bytes) if bytes.len() <= limits.stdin => (None, bytes),
            Stdin::Bytes(bytes) => {
                let path = format!("{}.in", self.yard.dir(id));
                self.upload_own(path.clone(), bytes).await?;
                (Some(path), Bytes::new())
            }
            Stdin::Null | Stdin::Stream => (Some("/dev/null".to_owned()), Bytes::new()),
        };
        let most = match request.output_limit.filter(|limit| limit.on_exceed == OnExceed::Kill) {
            Some(limit) => limit.bytes,
            None if internal => u64::MAX >> 2,
            None => HELD,
        };
        let order = Order {
            id,
            private: given && !internal,
            launch,
            stdin,
            input,
            timeout: self.time_of(&request, internal),
            most,
            watched: !internal,
            tidy: request.leftovers == Leftovers::Kill,
            live: self.config.capabilities.streaming_output && !internal,
        };
        Ok(PlainHandle::new(self.yard.launch(order)?))
    }

    /// How long a command may take.
    fn time_of(&self, request: &ExecRequest, internal: bool) -> Option<Duration> {
        let asked = request.time_limit(self.config.limits.exec);
        let most = self.config.bounds.time.filter(|_| !internal);
        asked.map_or(most, |asked| Some(most.map_or(asked, |most| asked.min(most))))
    }

    /// Writes a file of our own, on the driver.
    async fn upload_own(&self, path: String, contents: Bytes) -> Result<()> {
        let yard = self.yard.clone();
        let upload = crate::driver::handle()?.spawn(async move { yard.upload(&path, contents).await });
        upload.await.unwrap_or_else(|error| Err(Error::new(ErrorKind::Internal, "exec", error.to_string())))
    }

    /// Runs a script of ours like a command, for what prints more than the transport carries at once.
    pub(super) async fn internal(&self, script: String, most: u64, tried: &'static str) -> Result<(PlainOutput, i32)> {
        let request = ExecRequest::shell(script).timeout(Duration::from_secs(600));
        let mut handle = self.launch_own(request, None).await?;
        match self.collected_up_to(&mut handle, most, tried).await? {
            (Outcome::Exited(status), output) => Ok((output, status)),
            (Outcome::Lost, _) => Err(Error::new(ErrorKind::Lost, tried, "the machine went away")),
            (outcome, _) => Err(Error::new(ErrorKind::Io, tried, format!("the machine's script {outcome}"))),
        }
    }

    /// Waits for a command of ours, and collects what it said.
    pub(super) async fn collected(&self, handle: &mut PlainHandle, tried: &'static str) -> Result<(Outcome, PlainOutput)> {
        self.collected_up_to(handle, 64 << 10, tried).await
    }

    async fn collected_up_to(&self, handle: &mut PlainHandle, most: u64, tried: &'static str) -> Result<(Outcome, PlainOutput)> {
        let (stdout, stderr) = (handle.take_stdout(), handle.take_stderr());
        let (stdout, stderr) = (all(stdout, most, tried).await?, all(stderr, 64 << 10, tried).await?);
        let outcome = handle.wait().await?.outcome;
        let status = if let Outcome::Exited(status) = outcome { status } else { -1 };
        Ok((outcome, PlainOutput { status, stdout, stderr }))
    }

    /// The same, with what it prints as a stream, once it has ended well.
    pub(super) async fn internal_stream(
        &self,
        request: ExecRequest,
        tried: &'static str,
        path: &GuestPath,
    ) -> Result<ByteReader> {
        let mut handle = self.launch_own(request, None).await?;
        let (stdout, stderr) = (handle.take_stdout(), handle.take_stderr());
        let completed = handle.wait().await?;
        match completed.outcome {
            Outcome::Exited(0) => stdout.ok_or_else(|| Error::new(ErrorKind::Internal, tried, "no output")),
            Outcome::Exited(status) => {
                let (stdout, stderr) = (all(stdout, 64 << 10, tried).await?, all(stderr, 64 << 10, tried).await?);
                Err(super::files::failed(&PlainOutput { status, stdout, stderr }, tried, path))
            }
            Outcome::Lost => Err(Error::new(ErrorKind::Lost, tried, "the machine went away")),
            outcome => Err(Error::new(ErrorKind::Io, tried, format!("the machine's script {outcome}"))),
        }
    }
}

/// Reads a stream of ours to its end.
async fn all(stream: Option<ByteReader>, most: u64, tried: &'static str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(stream) = stream else { return Ok(bytes) };
    let read = stream.take(most + 1).read_to_end(&mut bytes).await;
    read.map_err(|error| error.downcast::<Error>().unwrap_or_else(|error| Error::io(tried, error)))?;
    if bytes.len() as u64 > most {
        return Err(Error::new(ErrorKind::TooLarge, tried, format!("the machine says more than {most} bytes")));
    }
    Ok(bytes)
}

#[async_trait]
impl Sandbox for PlainSandbox {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn limits(&self) -> &Limits {
        &self.config.limits
    }

    async fn spawn(&self, request: ExecRequest) -> Result<Box<dyn ExecHandle>> {
        self.named(self.launch(request).await.map(|handle| Box::new(handle) as Box<dyn ExecHandle>))
    }

    async fn spawn_detached(&self, _request: ExecRequest) -> Result<ExecId> {
        self.named(Err(Error::unsupported("exec", "a detached command")))
    }

    async fn execs(&self) -> Result<Vec<ExecInfo>> {
        self.named(Err(Error::unsupported("list commands", "listing commands")))
    }

    async fn attach(&self, _id: ExecId, _stdout_from: u64, _stderr_from: u64) -> Result<Box<dyn ExecHandle>> {
        self.named(Err(Error::unsupported("attach", "following a command")))
    }

    async fn signal(&self, _id: ExecId, _signal: Signal) -> Result<()> {
        self.named(Err(Error::unsupported("signal", "sending signals")))
    }

    async fn kill(&self, _id: ExecId, _reason: KillReason) -> Result<()> {
        self.named(Err(Error::unsupported("kill", "killing a command by id")))
    }

    async fn wait(&self, _id: ExecId) -> Result<Completed> {
        self.named(Err(Error::unsupported("wait", "waiting for a command by id")))
    }

    async fn read(&self, path: &GuestPath, options: ReadOptions) -> Result<(FileMeta, ByteReader)> {
        self.named(self.files("read", path))?;
        self.named(self.read_path(path, options).await)
    }

    async fn write(&self, path: &GuestPath, contents: ByteReader, options: WriteOptions) -> Result<()> {
        self.named(self.files("write", path))?;
        self.named(self.write_path(path, contents, options).await)
    }

    async fn stat(&self, path: &GuestPath, follow: bool) -> Result<FileMeta> {
        self.named(self.files("stat", path))?;
        self.named(self.stat_path(path, follow).await)
    }

    async fn list(&self, path: &GuestPath) -> Result<Vec<DirEntry>> {
        self.named(self.files("list", path))?;
        self.named(self.list_path(path).await)
    }

    async fn remove(&self, path: &GuestPath, recursive: bool) -> Result<()> {
        self.named(self.files("remove", path))?;
        self.named(self.remove_path(path, recursive).await)
    }

    async fn make_dir(&self, path: &GuestPath) -> Result<()> {
        self.named(self.files("make directory", path))?;
        self.named(self.make_dir_path(path).await)
    }

    async fn unpack(&self, path: &GuestPath, tar: ByteReader) -> Result<()> {
        self.named(self.require(self.capabilities.archives, "unpack", "moving directories"))?;
        self.named(self.files("unpack", path))?;
        self.named(self.unpack_path(path, tar).await)
    }

    async fn pack(&self, path: &GuestPath) -> Result<ByteReader> {
        self.named(self.require(self.capabilities.archives, "pack", "moving directories"))?;
        self.named(self.files("pack", path))?;
        self.named(self.pack_path(path).await)
    }

    async fn dial(&self, _target: DialTarget) -> Result<Box<dyn ByteStream>> {
        self.named(Err(Error::unsupported("dial", "a stream into the machine")))
    }
}
