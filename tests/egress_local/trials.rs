//! Programs that people use, and the gateway's end.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use tierbox::{Backend, Environment, ExecRequest, ExecResult, Hold, Protocol, SandboxExt, Verdict};
use tierbox_testkit::{Absence, Adjust, BackendFactory, Factory, world};

use crate::support;

/// Containers whose profile allows what the world's names are for.
pub fn factory() -> Arc<dyn Factory> {
    let backend: Arc<dyn Backend> = Arc::new(tierbox::local::LocalBackend::new());
    let mut spec = support::spec("local-web");
    spec.network.allow = world::ALLOWED.iter().map(|name| (*name).to_owned()).collect();
    Arc::new(InWorld(BackendFactory::new("local-container", backend, spec, None)))
}

/// Is absent where there is no world.
struct InWorld(BackendFactory);

#[async_trait::async_trait]
impl Factory for InWorld {
    fn engine(&self) -> &str {
        self.0.engine()
    }

    fn absent(&self) -> Option<Absence> {
        world::absent().or_else(|| self.0.absent())
    }

    async fn start(&self, adjust: Adjust<'_>) -> tierbox::Result<Arc<dyn Environment>> {
        self.0.start(adjust).await
    }
}

type Work = fn(&Arc<dyn Environment>) -> Result<(), Failed>;

/// Every trial.
pub fn all() -> Vec<Trial> {
    let trials: [(&str, Hold, Work); 7] = [
        ("eval::curl_works_over_http_and_https", Hold::Process, curl),
        ("eval::pip_installs_from_an_index", Hold::Process, pip),
        ("eval::git_clones_over_https", Hold::Process, git),
        ("eval::apt_fetches_a_package", Hold::Process, apt),
        ("eval::npm_installs_from_a_registry", Hold::Process, npm),
        ("conformance::decisions_can_be_read", Hold::Process, decisions),
        ("escape::a_killed_gateway_leaves_no_network", Hold::Kept, killed),
    ];
    let browse = Trial::test(BROWSE, browse);
    let ended = Trial::test(ENDED, ended_by_down);
    let open = Trial::test(OPEN, ended_while_open);
    let more = [browse, ended, open];
    trials.map(|(name, hold, work)| Trial::test(name, move || run(name, hold, work))).into_iter().chain(more).collect()
}

const BROWSE: &str = "eval::an_agent_that_browses_gets_allowed_pages_only";

/// T1 with N1, as the profile says it: the agent's handle, the gateway, an allowed page and a refused one.
fn browse() -> Result<(), Failed> {
    if let Some(absence) = factory().absent() {
        return Ok(support::skip("local-container", BROWSE, &absence)?);
    }
    if lacks("curl", BROWSE)? {
        return Ok(());
    }
    let state = tempfile::tempdir()?;
    let profiles = concat!(env!("CARGO_MANIFEST_DIR"), "/../../profiles");
    let client = tierbox::Tierbox::builder().profile_dir(profiles).user_config(false).state_dir(state.path()).build()?;
    let options = tierbox::StartOptions::new().set("network.allow", "[\"index.test\"]").allow_weaker();
    block_on(async {
        let running = client.start_with("local-browse", options).await?;
        let agent = running.agent();
        let curl = |words: &[&str]| ExecRequest::new(["/usr/bin/curl", "-q", "-g"].iter().chain(words));
        let page = agent.run(curl(&["-sSf", "http://index.test/x"])).await?;
        assert_eq!(page.stdout.text(), "hello\n");
        assert!(!agent.run(curl(&["-sSf", "http://other.test/x"])).await?.success());
        // One address is one request, whatever curl would make of it by itself.
        let asked = async || -> tierbox::Result<usize> {
            let decisions = running.decisions().await?;
            let allowed = |one: &&tierbox::Decision| one.protocol == Protocol::Http && one.verdict == Verdict::Allowed;
            Ok(decisions.iter().filter(allowed).count())
        };
        for many in ["http://index.test/[1-5]", "http://index.test/{a,b}"] {
            let before = asked().await?;
            agent.run(curl(&["-sS", many])).await?;
            assert!(asked().await? <= before + 1, "{many} became {} requests", asked().await? - before);
        }
        for refused in [
            curl(&["-X", "POST", "http://index.test/x"]),
            curl(&["-d", "x", "http://index.test/x"]),
            curl(&["-o", "/tmp/x", "http://index.test/x"]),
            ExecRequest::new(["/usr/bin/curl", "-q", "http://index.test/[1-100]"]),
            ExecRequest::new(["/usr/bin/curl", "-q", "http://index.test/{a,b}"]),
            ExecRequest::new(["/bin/sh", "-c", "true"]),
        ] {
            let error = agent.run(refused).await.expect_err("refused");
            assert_eq!(error.kind(), tierbox::ErrorKind::PolicyDenied);
        }
        let refused =
            running.decisions().await?.into_iter().any(|one| one.name == "other.test" && one.verdict == Verdict::Refused);
        assert!(refused);
        running.stop().await
    })?;
    Ok(())
}

const ENDED: &str = "conformance::what_was_decided_outlives_a_detached_environment";

/// Ended by somebody who did not start it, or cleaned up: the decisions are in the log.
fn ended_by_down() -> Result<(), Failed> {
    if let Some(absence) = factory().absent() {
        return Ok(support::skip("local-container", ENDED, &absence)?);
    }
    if lacks("curl", ENDED)? {
        return Ok(());
    }
    let state = tempfile::tempdir()?;
    for (secret, is_cleaned_up) in [(None, false), (Some("hunter2"), false), (None, true)] {
        let client = || tierbox::Tierbox::builder().user_config(false).state_dir(state.path()).build();
        let mut options = tierbox::StartOptions::new();
        (options.hold, options.log) = (Some(Hold::Kept), true);
        let names = block_on(async {
            let starter = client()?;
            let mut spec = starter.resolve("local-web", &options)?;
            secret.into_iter().for_each(|value| spec.secrets.add(value));
            let running = starter.start_spec(spec, options).await?;
            let asked = ExecRequest::new(["curl", "-s", "http://other.test/hunter2"]);
            running.sandbox().run(asked).await?;
            let id = running.id().to_owned();
            drop((running, starter));
            if is_cleaned_up {
                client()?.renew(&id, Hold::Until(std::time::SystemTime::UNIX_EPOCH))?;
                let report = client()?.cleanup(Default::default()).await?;
                assert!(report.removed.iter().any(|removed| removed.starts_with(&id)), "{report:?}");
            } else {
                client()?.down(&id).await?;
            }
            let run = client()?.run(&id)?;
            assert!(run.check(None)?.is_intact());
            let records = tierbox::verify::log::read(&run.directory)?;
            let last = records.iter().rfind(|record| record.value["operation"] == "egress").expect("a last line");
            assert_eq!(last.value["outcome"]["status"], "done", "{last:?}");
            Ok::<_, tierbox::Error>(run.decisions.into_iter().map(|decision| decision.name).collect::<Vec<_>>())
        })?;
        // Whoever ends it does not know which values are secrets.
        let expected = if secret.is_some() { "withheld" } else { "other.test" };
        if !names.iter().any(|name| name == expected) || names.iter().any(|name| secret.is_some() && name != expected) {
            return Err(format!("{names:?}").into());
        }
    }
    Ok(())
}

const OPEN: &str = "conformance::what_was_decided_is_in_the_log_however_it_ends";

/// How an environment ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Stop,
    Drop,
    /// Somebody removed what the gateway wrote.
    Lost,
}

/// Ended while a connection is open: its bytes are in the log, and what was decided was there before the end.
fn ended_while_open() -> Result<(), Failed> {
    if let Some(absence) = factory().absent() {
        return Ok(support::skip("local-container", OPEN, &absence)?);
    }
    let listener = world::among_servers(|| std::net::TcpListener::bind((world::SERVER, 2022)))??;
    let (heard, hears) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut hello = [0; 5];
            let read = std::io::Read::read_exact(&mut stream, &mut hello);
            let _ = heard.send(read.map(|()| hello));
            held.push(stream);
        }
    });
    for end in [End::Stop, End::Drop, End::Lost] {
        let state = tempfile::tempdir()?;
        let client = tierbox::Tierbox::builder().user_config(false).state_dir(state.path()).build()?;
        let options = tierbox::StartOptions::new().log().set("network.allow", "[\"tcp://git.test:2022\"]").allow_weaker();
        block_on(async {
            let running = client.start_with("local-web", options).await?;
            let id = running.id().to_owned();
            let connect = "exec 3<>/dev/tcp/198.18.0.1/3128; \
                printf 'CONNECT git.test:2022 HTTP/1.1\\r\\nHost: git.test:2022\\r\\n\\r\\nhello' >&3; exec sleep 100";
            let held = running.sandbox().spawn(ExecRequest::new(["/bin/bash", "-c", connect])).await?;
            assert_eq!(&hears.recv_timeout(Duration::from_secs(20))??, b"hello");
            let told = |verdict| -> Result<_, Failed> {
                let told = client.run(&id)?.decisions.into_iter();
                Ok(told.filter(|one| one.name == "git.test" && one.verdict == verdict).collect::<Vec<_>>())
            };
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while told(Verdict::Allowed)?.is_empty() {
                assert!(std::time::Instant::now() < deadline, "a run that goes on does not show what was decided");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            if end == End::Lost {
                std::fs::remove_file(state.path().join("env").join(&id).join("egress.jsonl"))?;
            }
            match end {
                End::Stop | End::Lost => running.stop().await?,
                End::Drop => drop(running),
            }
            drop(held);
            assert!(tierbox::settle(Duration::from_secs(30)).await);
            let run = client.run(&id)?;
            let standing = run.check(None)?;
            assert!(standing.is_intact() && standing.ended, "{end:?}: {standing:?}");
            let records = tierbox::verify::log::read(&run.directory)?;
            let last = records.iter().rfind(|record| record.value["operation"] == "egress").expect("a last line");
            if end == End::Lost {
                assert_eq!(last.value["outcome"]["status"], "failed", "{last:?}");
                return Ok(());
            }
            let ended = told(Verdict::Ended)?;
            assert_eq!((ended.len(), ended[0].sent), (1, 5), "{end:?}");
            assert!(told(Verdict::Allowed)?.iter().any(|one| one.id == ended[0].id), "{end:?}: {:?}", run.decisions);
            assert_eq!(last.value["arguments"], serde_json::json!({ "decisions": run.decisions.len() }), "{end:?}");
            Ok::<_, Failed>(())
        })?;
    }
    Ok(())
}

fn run(name: &str, hold: Hold, work: Work) -> Result<(), Failed> {
    let factory = factory();
    if let Some(absence) = factory.absent() {
        return Ok(support::skip("local-container", name, &absence)?);
    }
    let environment = block_on(factory.start(&move |spec| spec.hold = hold))?;
    let done = work(&environment);
    block_on(environment.stop())?;
    done
}

fn block_on<F: Future>(future: F) -> F::Output {
    static RUNTIME: std::sync::OnceLock<tokio::runtime::Runtime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().expect("a runtime")).block_on(future)
}

/// Runs a script that must succeed.
fn sh(environment: &Arc<dyn Environment>, script: &str) -> Result<ExecResult, Failed> {
    let request = ExecRequest::shell(format!("set -e; export CA=$PWD/ca.pem; {script}")).timeout(Duration::from_secs(100));
    let result = block_on(environment.primary().run(request))?;
    if result.success() {
        Ok(result)
    } else {
        Err(format!("{script}: {result:?}\n{:?}", block_on(environment.decisions())).into())
    }
}

/// Puts the world's authority where the working directory is.
fn trust(environment: &Arc<dyn Environment>) -> Result<(), Failed> {
    let pem = std::fs::read(directory().join("ca.pem"))?;
    Ok(block_on(environment.primary().write_bytes("ca.pem", pem))?)
}

fn directory() -> std::path::PathBuf {
    world::directory().expect("a world")
}

/// Runs a script on the host, in the directory that the servers serve.
fn serve(script: &str) -> Result<(), Failed> {
    let output = Command::new("sh").args(["-ec", script]).current_dir(directory().join("www")).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{script}: {said}").into()) }
}

fn has(program: &str) -> bool {
    ["/usr/bin", "/usr/local/bin"].iter().any(|dir| Path::new(dir).join(program).exists())
}

/// Skips what is not on this machine.
fn lacks(program: &str, test: &str) -> Result<bool, Failed> {
    if has(program) {
        return Ok(false);
    }
    let absence = Absence { reason: format!("{program} is not installed"), install: format!("apt-get install {program}") };
    support::skip(program, test, &absence)?;
    Ok(true)
}

const DIRECT: &str = "unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY;";

fn curl(environment: &Arc<dyn Environment>) -> Result<(), Failed> {
    if lacks("curl", "curl")? {
        return Ok(());
    }
    trust(environment)?;
    for way in ["", DIRECT] {
        for url in ["http://index.test/x", "https://index.test/x", "https://x.files.test/x", "http://x.files.test:8080/x"] {
            let out = sh(environment, &format!("{way} curl -sSf --cacert ca.pem {url}"))?;
            if out.stdout.text() != "hello\n" {
                return Err(format!("{url}: {out:?}").into());
            }
        }
        sh(environment, &format!("{way} ! curl -sSf --cacert ca.pem https://other.test/x"))?;
    }
    Ok(())
}

fn pip(environment: &Arc<dyn Environment>) -> Result<(), Failed> {
    if lacks("pip3", "pip")? {
        return Ok(());
    }
    trust(environment)?;
    serve(
        "mkdir -p simple/tiny && python3 - <<'END'
import zipfile
with zipfile.ZipFile('simple/tiny/tiny-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('tiny.py', 'WORD = \"installed\"\\n')
    wheel.writestr('tiny-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n')
    wheel.writestr('tiny-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr('tiny-1.0.dist-info/RECORD', '')
open('simple/tiny/index.html', 'w').write('<a href=\"tiny-1.0-py3-none-any.whl\">tiny-1.0-py3-none-any.whl</a>')
END",
    )?;
    for (number, way) in ["", DIRECT].iter().enumerate() {
        let out = sh(
            environment,
            &format!(
                "{way} /usr/bin/python3 -m pip install -q --disable-pip-version-check --no-cache-dir --cert ca.pem \
                 --index-url https://index.test/simple/ --target t{number} tiny; PYTHONPATH=t{number} /usr/bin/python3 -c \
                 'import tiny; print(tiny.WORD)'"
            ),
        )?;
        if out.stdout.text().trim() != "installed" {
            return Err(format!("{out:?}").into());
        }
    }
    Ok(())
}

fn git(environment: &Arc<dyn Environment>) -> Result<(), Failed> {
    if lacks("git", "git")? {
        return Ok(());
    }
    trust(environment)?;
    serve(
        "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1; git init -q work; cd work; echo cloned > file; git add file; \
         git -c user.name=x -c user.email=x@index.test commit -qm x; cd ..; git clone -q --bare work repo.git; \
         git -C repo.git update-server-info",
    )?;
    for (number, way) in ["", DIRECT].iter().enumerate() {
        sh(
            environment,
            &format!("{way} GIT_SSL_CAINFO=$CA git clone -q https://index.test/repo.git r{number}; cat r{number}/file"),
        )?;
    }
    Ok(())
}

fn apt(environment: &Arc<dyn Environment>) -> Result<(), Failed> {
    if lacks("apt-get", "apt")? || lacks("dpkg-deb", "apt")? {
        return Ok(());
    }
    serve(
        "mkdir -p deb tiny/DEBIAN; printf 'Package: tiny\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: x <x@index.test>\\n\
         Description: x\\n' > tiny/DEBIAN/control; dpkg-deb -b tiny deb/tiny_1.0_all.deb >/dev/null; cd deb; \
         { cat ../tiny/DEBIAN/control; echo Filename: ./tiny_1.0_all.deb; echo Size: $(stat -c %s tiny_1.0_all.deb); \
         echo SHA256: $(sha256sum tiny_1.0_all.deb | cut -d' ' -f1); echo; } > Packages",
    )?;
    for (number, way) in ["", DIRECT].iter().enumerate() {
        sh(
            environment,
            &format!(
                "{way} mkdir -p a{number}/lists/partial a{number}/cache/archives/partial; : > a{number}/status; cd a{number}; \
                 echo 'deb [trusted=yes] http://index.test/deb ./' > list; \
                 O=\"-o Dir::Etc=$PWD/none -o Dir::Etc::sourcelist=$PWD/list -o Dir::Etc::sourceparts=/none -o Dir::State=$PWD -o \
                 Dir::State::lists=$PWD/lists -o Dir::State::status=$PWD/status -o Dir::Cache=$PWD/cache -o APT::Sandbox::User= -o \
                 Debug::NoLocking=1\"; apt-get $O -qq update; apt-get $O -qq download tiny; test -s tiny_1.0_all.deb"
            ),
        )?;
    }
    Ok(())
}

fn npm(environment: &Arc<dyn Environment>) -> Result<(), Failed> {
    if lacks("npm", "npm")? || lacks("node", "npm")? {
        return Ok(());
    }
    trust(environment)?;
    serve(
        "mkdir -p npm/package tarballs; printf '{\"name\":\"small\",\"version\":\"1.0.0\"}' > npm/package/package.json; \
         tar -C npm -czf tarballs/small-1.0.0.tgz package; \
         printf '{\"name\":\"small\",\"dist-tags\":{\"latest\":\"1.0.0\"},\"versions\":{\"1.0.0\":{\"name\":\"small\",\"version\":\"1.0.0\",\
         \"dist\":{\"tarball\":\"https://index.test/tarballs/small-1.0.0.tgz\"}}}}' > small",
    )?;
    for (number, way) in ["", DIRECT].iter().enumerate() {
        sh(
            environment,
            &format!(
                "{way} mkdir -p n{number}; cd n{number}; echo '{{}}' > package.json; npm install --cafile $CA --fetch-retries 0 --registry \
                 https://index.test/ --no-audit --no-fund --no-update-notifier --cache $PWD/cache small; test -s \
                 node_modules/small/package.json"
            ),
        )?;
    }
    Ok(())
}

fn decisions(environment: &Arc<dyn Environment>) -> Result<(), Failed> {
    sh(environment, "getent hosts index.test; getent hosts other.test || true; curl -sf http://index.test/x")?;
    let found = block_on(environment.decisions())?;
    let has = |name: &str, verdict| found.iter().any(|one| one.name == name && one.verdict == verdict);
    let ended = found.iter().find(|one| one.verdict == Verdict::Ended);
    if !has("index.test", Verdict::Allowed) || !has("other.test", Verdict::Refused) || ended.is_none_or(|one| one.received != 6) {
        return Err(format!("{found:?}").into());
    }
    if found.iter().any(|one| one.sandbox != environment.id()) {
        return Err("a decision names another sandbox".into());
    }
    let report = environment.report();
    let named = report.notes.iter().any(|note| note.contains("*.files.test") && note.contains("not seen"));
    if !named || !report.mechanisms.iter().any(|one| one.name == "egress gateway") {
        return Err(format!("{report:?}").into());
    }
    Ok(())
}

fn killed(environment: &Arc<dyn Environment>) -> Result<(), Failed> {
    sh(environment, "curl -sf http://index.test/x")?;
    let gateway = gateway_of_this_process().ok_or("no gateway in a process of its own")?;
    let killed = Command::new("kill").args(["-9", &gateway]).status()?;
    assert!(killed.success());
    // Its sockets close with it.
    for _ in 0..500 {
        if !Path::new("/proc").join(&gateway).join("fd/0").exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for way in ["", DIRECT] {
        // Each by itself: of several that are not to succeed, a shell tells the last one's end.
        let direct = format!("curl -sf -m 5 http://{}/x", world::SERVER);
        for reached in ["curl -sf -m 5 http://index.test/x", "getent hosts index.test", &direct] {
            sh(environment, &format!("{way} ! {reached}"))?;
        }
    }
    Ok(())
}

/// The gateway among this process's children, as its own name for itself tells.
fn gateway_of_this_process() -> Option<String> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?.flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok()).collect::<String>();
    children.split_whitespace().map(str::to_owned).find(|pid| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains("tierbox-egress-gateway"))
    })
}
