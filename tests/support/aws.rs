//! The server that imitates AWS, and environments of the EC2 backend on it. See tests/engines/aws/README.md.
#![allow(dead_code, reason = "every suite uses a part")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tierbox_core::{Environment, EnvironmentSpec, Error, ErrorKind, Result, Silent};
use tierbox_ec2::{Ec2Backend, SetUp, Wanted};
use tierbox_testkit::{Absence, Adjust, BackendFactory, Factory, world};
use tokio::sync::OnceCell;

/// The server, as one caller sees it: its knobs and counters are of its access key alone.
#[derive(Clone)]
pub struct Server {
    address: String,
    pub key: String,
}

/// Why there is no server, if so.
pub fn absent() -> Option<Absence> {
    if std::env::var_os("TIERBOX_TEST_AWS").is_some() {
        return None;
    }
    let install = "cargo xtask test --engine aws".to_owned();
    Some(Absence { reason: "TIERBOX_TEST_AWS names no server that imitates AWS".to_owned(), install })
}

impl Server {
    /// The server, with a key of its own and a bucket of that name.
    pub fn new() -> Self {
        let random: String = (0..3).map(|_| format!("{:04x}", rand_word())).collect();
        let server = Self::of_key(&format!("t{random}"));
        let made = server.signed("PUT", &format!("/{}", server.bucket()), "s3", "");
        assert!(made.starts_with("HTTP/1.1 200") || made.starts_with("HTTP/1.0 200"), "no bucket: {made}");
        server
    }

    /// The server as a caller sees it that was there before.
    pub fn of_key(key: &str) -> Self {
        let url = std::env::var("TIERBOX_TEST_AWS").expect("the server's address");
        Self { address: url.strip_prefix("http://").expect("a plain address").to_owned(), key: key.to_owned() }
    }

    /// The bucket of this caller.
    pub fn bucket(&self) -> String {
        format!("bucket-{}", self.key)
    }

    fn request(&self, head: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("the server answers");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time limit");
        let text = format!("{head}Host: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", self.address, body.len());
        stream.write_all(text.as_bytes()).expect("the request is sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the answer is read");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A call of AWS's API, whose signature nobody checks.
    pub fn signed(&self, method: &str, path: &str, service: &str, body: &str) -> String {
        let credential = format!("Credential={}/20261129/us-east-1/{service}/aws4_request", self.key);
        let form = if method == "POST" { "Content-Type: application/x-www-form-urlencoded\r\n" } else { "" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{form}Authorization: AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0\r\n"
        );
        self.request(&head, body)
    }

    /// A call of a service that speaks JSON.
    pub fn json(&self, service: &str, target: &str, body: &Value) -> Value {
        let credential = format!("Credential={}/20261129/us-east-1/{service}/aws4_request", self.key);
        let head = format!(
            "POST / HTTP/1.1\r\nX-Amz-Target: {target}\r\nContent-Type: application/x-amz-json-1.1\r\n\
             Authorization: AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0\r\n"
        );
        let answer = self.request(&head, &body.to_string());
        serde_json::from_str(answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)).expect("JSON")
    }

    fn ask(&self, question: &str, body: &Value) -> Value {
        let answer = self.request(&format!("POST /__emu__/{question}?key={} HTTP/1.1\r\n", self.key), &body.to_string());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{question}: {error}: {answer}"))
    }

    /// Sets knobs for this caller.
    pub fn set(&self, knobs: Value) {
        let answer = self.ask("config", &knobs);
        assert!(answer.get("error").is_none(), "{answer}");
    }

    /// What the server knows of this caller.
    pub fn state(&self) -> Value {
        self.ask("state", &json!({}))
    }

    /// Asks about one instance.
    pub fn of(&self, question: &str, instance: &str, more: Value) -> Value {
        let mut body = json!({"InstanceId": instance});
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        self.ask(question, &body)
    }

    /// How many calls were made, by operation.
    pub fn calls(&self) -> std::collections::BTreeMap<String, u64> {
        let state = self.state();
        let calls = state["calls"].as_object().expect("calls");
        calls.iter().map(|(name, count)| (name.clone(), count.as_u64().expect("a number"))).collect()
    }

    /// The states of the instances of this caller.
    pub fn instances(&self) -> std::collections::BTreeMap<String, String> {
        let state = self.state();
        let all = state["instances"].as_object().expect("instances");
        all.iter().map(|(id, instance)| (id.clone(), instance["state"].as_str().unwrap_or_default().to_owned())).collect()
    }

    /// The names that machines of this caller asked the server's resolvers for.
    pub fn asked_for(&self) -> String {
        let mine = self.instances();
        let seen = self.ask("seen", &json!({}));
        let seen = seen["seen"].as_array().expect("what was seen").iter();
        let names = seen.filter(|each| each["instance"].as_str().is_some_and(|id| mine.contains_key(id)));
        names.filter_map(|each| each["name"].as_str()).collect::<Vec<_>>().join("\n")
    }

    /// What EC2 says of an instance. It must be asked for by its id: a listing has pages.
    pub fn instance(&self, id: &str) -> String {
        let told = self.signed("POST", "/", "ec2", &format!("Action=DescribeInstances&Version=2016-11-15&InstanceId.1={id}"));
        assert!(told.contains(id), "EC2 does not know the instance: {told}");
        told
    }

    /// All that SSM keeps of commands: what was sent, with Base64 taken apart, and what came back.
    pub fn history(&self) -> String {
        let body = json!({}).to_string();
        let credential = format!("Credential={}/20261129/us-east-1/ssm/aws4_request", self.key);
        let head = format!(
            "POST / HTTP/1.1\r\nX-Amz-Target: AmazonSSM.ListCommands\r\nContent-Type: application/x-amz-json-1.1\r\n\
             Authorization: AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0\r\n"
        );
        let mut all = String::new();
        let mut next = String::new();
        loop {
            let body = if next.is_empty() { body.clone() } else { json!({"NextToken": next}).to_string() };
            let answer = self.request(&head, &body);
            let answer: Value = serde_json::from_str(answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)).expect("a list");
            for command in answer["Commands"].as_array().expect("commands") {
                let text = command["Parameters"]["commands"][0].as_str().unwrap_or_default();
                all.push_str(text);
                for word in text.split(|letter: char| !letter.is_ascii_alphanumeric() && !"+/=".contains(letter)) {
                    all.push_str(&String::from_utf8_lossy(&decoded(word)));
                }
            }
            match answer["NextToken"].as_str() {
                Some(token) => next = token.to_owned(),
                None => return all,
            }
        }
    }

    /// The keys of objects in this caller's bucket.
    pub fn objects(&self) -> Vec<String> {
        let listed = self.signed("GET", &format!("/{}?list-type=2", self.bucket()), "s3", "");
        listed.split("<Key>").skip(1).filter_map(|part| part.split_once("</Key>")).map(|(key, _)| key.to_owned()).collect()
    }

    /// The `[ec2]` table that leads here.
    pub fn settings(&self) -> Value {
        json!({
            "region": "us-east-1",
            "endpoint-url": format!("http://{}", self.address),
            "access-key-id": self.key,
            "secret-access-key": "nobody checks it",
            "bucket": self.bucket(),
        })
    }

    /// An environment that asks for nothing else.
    pub fn spec(&self) -> EnvironmentSpec {
        let mut spec = EnvironmentSpec::new("ec2", "T0.H3.N0".parse().expect("a tier"));
        spec.settings = self.settings();
        spec.limits.startup = Duration::from_secs(60);
        spec
    }

    /// A stack of this caller's own, in which SSM sees what has the stack's endpoints alone; with a gateway if its program is given.
    pub async fn stack(&self, gateway: Option<PathBuf>) -> Result<SetUp> {
        let mut account = self.settings();
        account["bucket"].take();
        let mut wanted = Wanted::new(self.key.clone());
        wanted.gateway = gateway;
        self.set(json!({"require_endpoints": true, "require_instance_profile": true}));
        Ec2Backend::new().setup(&account, &wanted, &Silent).await
    }

    /// The usual environment in a stack's network, in one of its groups.
    pub fn spec_in(&self, made: &SetUp, group: &str) -> Result<EnvironmentSpec> {
        let mut spec = self.spec();
        spec.settings["bucket"] = made.stack.output("Bucket")?.into();
        spec.settings["subnets"] = made.stack.output("SubnetIds")?.split(',').collect::<Vec<_>>().into();
        spec.settings["security-group"] = made.stack.output(group)?.into();
        spec.settings["instance-profile"] = made.stack.output("InstanceProfile")?.into();
        Ok(spec)
    }

    /// The same with N1 by the stack's gateway.
    pub fn named_spec_in(&self, made: &SetUp, allow: Vec<String>) -> Result<EnvironmentSpec> {
        let mut spec = self.spec_in(made, "SecurityGroupN1")?;
        spec.tier = "T0.H3.N1".parse().expect("a tier");
        spec.network.allow = allow;
        spec.settings["gateway"] = made.stack.output("GatewayInstance")?.into();
        Ok(spec)
    }
}

/// The gateway's program, without what debuggers read: it goes through the bucket.
pub fn gateway_program(directory: &Path) -> Result<PathBuf> {
    let small = directory.join("tierbox-egress");
    let strip =
        std::process::Command::new("strip").arg("-o").arg(&small).arg(env!("CARGO_BIN_EXE_tierbox-egress-of-tests")).status();
    match strip {
        Ok(status) if status.success() => Ok(small),
        _ => Err(Error::new(ErrorKind::MissingEngine, "strip the gateway", "strip (binutils) does not work")),
    }
}

/// What Base64 stands for; nonsense for what is none.
pub fn decoded(word: &str) -> Vec<u8> {
    let digit =
        |byte: u8| b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".iter().position(|each| *each == byte);
    let digits: Vec<usize> = word.bytes().filter_map(digit).collect();
    let words = digits.chunks(4).map(|four| four.iter().fold(0, |all, digit| all << 6 | digit) << (6 * (4 - four.len())));
    words.flat_map(|all| [(all >> 16) as u8, (all >> 8) as u8, all as u8]).collect()
}

fn rand_word() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() & 0xffff
}

/// Starts environments of a caller of its own, if there is a server.
pub fn factory() -> Arc<dyn Factory> {
    Arc::new(Patient { made: OnceCell::new(), place: Place::Usual })
}

/// The same with N2, in a stack of that caller's own.
pub fn closed() -> Arc<dyn Factory> {
    Arc::new(Patient { made: OnceCell::new(), place: Place::Closed })
}

/// The same with N1: what the gateway may reach are the names of the corpus's world, which the server leads to addresses of its own.
pub fn named() -> Arc<dyn Factory> {
    Arc::new(Patient { made: OnceCell::new(), place: Place::Named })
}

/// The same on one instance that exists.
pub fn attached() -> Arc<dyn Factory> {
    Arc::new(Patient { made: OnceCell::new(), place: Place::Attached })
}

/// Where environments are.
enum Place {
    Usual,
    Closed,
    Named,
    Attached,
}

/// Commands take some tenths of a second each, and the machine is shared with others. The server is asked for a bucket when the first
/// environment starts: listing the cases reaches nobody.
struct Patient {
    made: OnceCell<(Server, BackendFactory)>,
    place: Place,
}

impl Patient {
    async fn make(&self) -> Result<(Server, BackendFactory)> {
        let server = Server::new();
        // What takes time in AWS takes less here: promises are the same, and faults and delays have tests of their own.
        server.set(json!({
            "boot_s": 0.05, "ssm_online_s": 0.1, "terminate_s": 0.02,
            "deliver_s": 0.01, "report_s": 0.01, "invocation_visible_s": 0.02,
        }));
        let spec = match self.place {
            Place::Usual => server.spec(),
            Place::Closed => closed_spec(&server).await?,
            Place::Named => named_spec(&server).await?,
            Place::Attached => attached_spec(&server),
        };
        Ok((server, BackendFactory::new("aws", Arc::new(Ec2Backend::new()), spec, None)))
    }
}

/// An instance that ends itself when the tests are long over, and what a task on it asks for.
fn attached_spec(server: &Server) -> EnvironmentSpec {
    // #!/bin/sh
    // (sleep 1800; shutdown -h now) </dev/null >/dev/null 2>&1 &
    let ends = "IyEvYmluL3NoCihzbGVlcCAxODAwOyBzaHV0ZG93biAtaCBub3cpIDwvZGV2L251bGwgPi9kZXYvbnVsbCAyPiYxICYK";
    let body = format!(
        "Action=RunInstances&Version=2016-11-15&ImageId=ami-1e749f67&MinCount=1&MaxCount=1&UserData={ends}\
         &InstanceInitiatedShutdownBehavior=terminate"
    );
    let made = server.signed("POST", "/", "ec2", &body);
    let id = made.split_once("<instanceId>").and_then(|(_, rest)| rest.split_once('<')).expect("an instance").0;
    let mut spec = server.spec();
    spec.settings["instance-id"] = id.into();
    spec
}

/// What an environment with N2 asks for, in a stack of the caller's own.
async fn closed_spec(server: &Server) -> Result<EnvironmentSpec> {
    let made = server.stack(None).await?;
    let mut spec = server.spec_in(&made, "SecurityGroupN2")?;
    spec.tier = "T0.H3.N2".parse().expect("a tier");
    Ok(spec)
}

/// The same with N1, and where the names of the corpus's world lead.
async fn named_spec(server: &Server) -> Result<EnvironmentSpec> {
    let files = tempfile::tempdir().map_err(|error| Error::io("make directory", error))?;
    let made = server.stack(Some(gateway_program(files.path())?)).await?;
    // The server answers there, too: see `PRIVATE` in its emulator/network.py.
    let private = "10.255.0.10";
    server.set(json!({"names": {
        "private.test": private, "mapped.test": format!("::ffff:{private}"), "metadata.test": "169.254.169.254",
        "own.test": made.stack.output("GatewayAddress")?, "loopback.test": "127.0.0.1",
    }}));
    server.named_spec_in(&made, world::allowed_at_usual_ports())
}

#[async_trait]
impl Factory for Patient {
    fn engine(&self) -> &str {
        "aws"
    }

    fn absent(&self) -> Option<Absence> {
        absent()
    }

    fn start_limit(&self) -> Duration {
        Duration::from_secs(120)
    }

    fn case_limit(&self) -> Duration {
        Duration::from_secs(240)
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(40)
    }

    fn heard(&self) -> Option<String> {
        let Place::Named = self.place else { return None };
        Some(self.made.get()?.0.asked_for())
    }

    async fn start(&self, adjust: Adjust<'_>) -> Result<Arc<dyn Environment>> {
        self.made.get_or_try_init(|| self.make()).await?.1.start(adjust).await
    }
}
