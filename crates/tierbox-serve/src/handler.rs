//! One request, from its head to its answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Request, StatusCode, Uri};
use tierbox::{Error, ErrorKind, ExecInfo, ExecState, KillReason, Result};

use crate::answer::{self, Answer, BYTES, JSON, METRICS, TAR, WITH_BYTES};
use crate::environments::invalid;
use crate::grant::Grant;
use crate::held::Busy;
use crate::intake::Intake;
use crate::presence::Presence;
use crate::principal::{Origin, Principal, Refusal};
use crate::routes::{self, Content, Found, Op, Route};
use crate::seats::Visitor;
use crate::server::Shared;
use crate::turns::Client;
use crate::{code, exec, files, runs, wire};

/// What a handler works with.
pub(crate) struct Asked {
    pub shared: Arc<Shared>,
    pub principal: Principal,
    pub client: Client,
    pub query: Query,
    pub intake: Intake,
    pub presence: Presence,
    /// Whether the body is a JSON document and nothing else.
    pub json: bool,
}

/// The values in the query.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    /// Reads the query, which may hold what the route names and nothing else.
    fn read(uri: &Uri, route: &Route) -> Result<Self> {
        let decode = |text: &str| -> Vec<u8> { percent_encoding::percent_decode_str(text).collect() };
        let mut values: Vec<(String, Vec<u8>)> = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = String::from_utf8_lossy(&decode(name)).into_owned();
            if !route.query.iter().any(|param| param.name == name) {
                return Err(invalid("the query holds a name that this request does not know"));
            }
            if values.iter().any(|(earlier, _)| *earlier == name) {
                return Err(invalid("the query holds a name twice"));
            }
            values.push((name, decode(value)));
        }
        Ok(Self(values))
    }

    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_slice())
    }

    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        let text = self.bytes(name).map(std::str::from_utf8).transpose();
        text.map_err(|_| invalid("a value in the query is no UTF-8"))
    }

    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let number = self.text(name)?.map(|text| digits(text).ok_or_else(|| invalid("a number in the query is none")));
        number.transpose()
    }

    pub fn yes(&self, name: &str) -> Result<bool> {
        match self.text(name)? {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(invalid("a value in the query is neither `true` nor `false`")),
        }
    }
}

/// Answers a request. One that is heard makes the visitor a known one.
pub(crate) async fn handle(
    shared: Arc<Shared>,
    origin: &Origin,
    presence: Presence,
    request: Request<Incoming>,
    visitor: &Visitor,
) -> Answer {
    let answer = match admitted(&shared, origin, &request, visitor) {
        Ok(admitted) => {
            visitor.greet();
            let work = answer(shared.clone(), origin, presence.clone(), request, admitted);
            let answered = tokio::select! {
                answered = work => answered,
                // What is under way for nobody ends: dropping the work kills its command.
                () = presence.gone() => Err(Error::new(ErrorKind::Cancelled, "answer request", "the client went away")),
            };
            answered.unwrap_or_else(|error| answer::problem(&error))
        }
        Err(refused) => *refused,
    };
    shared.metrics.answered(answer.status().as_u16());
    answer
}

/// What is asked, and by whom.
struct Admitted {
    route: &'static Route,
    /// What stands in the places of its path.
    places: Vec<String>,
    principal: Principal,
    owner: String,
}

/// Whether the request is heard at all. Who has no right learns nothing about what there is.
fn admitted(
    shared: &Shared,
    origin: &Origin,
    request: &Request<Incoming>,
    visitor: &Visitor,
) -> std::result::Result<Admitted, Box<Answer>> {
    let refuse = |refusal: Refusal| {
        shared.metrics.refused.fetch_add(1, Ordering::Relaxed);
        Box::new(refused(&refusal))
    };
    let (principal, owner) = origin.principal(request.headers(), &shared.tokens).map_err(refuse)?;
    let (route, places) = match routes::find(request.method(), request.uri().path()) {
        Found::Route(route, places) => (route, places),
        Found::Methods(methods) => return Err(Box::new(no_such_method(&methods))),
        Found::Nothing => {
            let error = Error::new(ErrorKind::NotFound, "find request", "the API has no such path");
            return Err(Box::new(answer::problem(&error.with_help("GET /v1/openapi.json lists them"))));
        }
    };
    match &principal {
        Principal::Agent(own) if !route.agent || places.first() != Some(&own.environment) => {
            Err(refuse(Refusal::Forbidden("an agent may not ask this")))
        }
        Principal::Agent(own) if !visitor.sit(&shared.seats, &own.environment) => Err(Box::new(no_seat())),
        _ => Ok(Admitted { route, places, principal, owner }),
    }
}

fn refused(refusal: &Refusal) -> Answer {
    let (status, message) = match refusal {
        Refusal::Unauthorized => (StatusCode::UNAUTHORIZED, "there is no valid token in the request"),
        Refusal::Forbidden(why) => (StatusCode::FORBIDDEN, *why),
    };
    let error = Error::new(ErrorKind::PolicyDenied, "admit request", message);
    let mut answer = answer::refusal(status, &wire::Problem::of(&error));
    if status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}

/// The connection ends with it: another one may find a seat later.
fn no_seat() -> Answer {
    let message = "the agents of this environment, or all agents, have as many connections as they may";
    let error = Error::new(ErrorKind::LimitReached, "admit request", message).with_help("end one of them").retryable();
    let mut answer = answer::problem(&error);
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn no_such_method(methods: &[&str]) -> Answer {
    let allowed = methods.join(", ");
    let error = Error::new(ErrorKind::InvalidInput, "find request", format!("this path takes {allowed}"));
    let mut answer = answer::refusal(StatusCode::METHOD_NOT_ALLOWED, &wire::Problem::of(&error));
    if let Ok(value) = HeaderValue::from_str(&allowed) {
        answer.headers_mut().insert(ALLOW, value);
    }
    answer
}

async fn answer(
    shared: Arc<Shared>,
    origin: &Origin,
    presence: Presence,
    request: Request<Incoming>,
    admitted: Admitted,
) -> Result<Answer> {
    let Admitted { route, places, principal, owner } = admitted;
    let client = origin.client(request.headers(), owner)?;
    let query = Query::read(request.uri(), route)?;
    let Some(json) = media(request.headers(), route.takes) else {
        let error = Error::new(ErrorKind::InvalidInput, "read request", "the body is of another media type than the API takes");
        return Ok(answer::refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, &wire::Problem::of(&error)));
    };
    let intake = Intake::new(request.into_body(), shared.options.patience);
    let asked = Asked { shared, principal, client, query, intake, presence, json };
    match places.as_slice() {
        [] => general(asked, route.op).await,
        [environment, rest @ ..] => in_environment(asked, route.op, environment, rest.first()).await,
    }
}

/// Whether the body's type is one that the route takes: `Some(true)` for JSON.
fn media(headers: &HeaderMap, takes: Content) -> Option<bool> {
    let stated = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    let stated = stated.map(|text| text.split(';').next().unwrap_or_default().trim());
    match takes {
        Content::Json(_) => stated.is_none_or(|stated| stated == JSON).then_some(true),
        Content::Command if stated == Some(JSON) => Some(true),
        Content::Command => (stated == Some(WITH_BYTES)).then_some(false),
        Content::Tar => stated.is_none_or(|stated| [TAR, BYTES].contains(&stated)).then_some(false),
        _ => Some(false),
    }
}

async fn general(mut asked: Asked, op: Op) -> Result<Answer> {
    let shared = asked.shared.clone();
    match op {
        Op::About => answer::json(&shared.about(asked.query.text("profile")?)?),
        Op::OpenApi => answer::json(&crate::openapi()),
        Op::Metrics => {
            let environments = shared.environments().len();
            Ok(answer::bytes(METRICS, shared.metrics.text(environments, &shared.admission.usage())))
        }
        Op::Events => Ok(shared.events.follow()),
        Op::List => answer::json(&shared.list().await?),
        Op::Create => {
            let create: wire::Create = asked.intake.document().await?;
            answer::json(&shared.create(&asked.client, create).await?)
        }
        Op::RenewMine => answer::json(&shared.renew_all(&asked.client, &asked.intake.document().await?)?),
        _ => Err(Error::new(ErrorKind::Internal, "answer request", "the table of requests is wrong")),
    }
}

async fn in_environment(mut asked: Asked, op: Op, environment: &str, exec: Option<&String>) -> Result<Answer> {
    let shared = asked.shared.clone();
    let is_agent = matches!(asked.principal, Principal::Agent(_));
    // What an agent does holds no lease: its harness may be gone.
    let find = async || shared.find(environment).await.map(|found| if is_agent { found.unheld() } else { found });
    match op {
        Op::Show => {
            let mut shown = shared.show(environment).await?;
            // For harnesses, as the request for it alone is.
            shown.attestation = shown.attestation.filter(|_| !is_agent);
            answer::json(&shown)
        }
        Op::Destroy => answer::json(&shared.destroy(environment).await?),
        Op::Renew => answer::json(&shared.renew(environment, &asked.intake.document().await?)?),
        Op::AgentToken => {
            // Of the id, whatever name it was asked by: a name may later be somebody else's.
            let found = shared.find(environment).await?;
            let machines = asked.intake.document::<wire::AskToken>().await?.machines;
            machines.iter().try_for_each(|name| found.running().machine(name).map(drop))?;
            let token = shared.tokens.for_agent(&Grant { environment: found.running().id().to_owned(), machines });
            answer::json(&wire::Token { token: token.ok_or_else(|| invalid("the daemon has no harness token"))? })
        }
        Op::Connect => {
            let found = shared.find(environment).await?;
            let machine = exec::machine(&asked.principal, &found, asked.query.text("machine")?)?;
            let connection = found.running().connection(machine.name())?;
            let state = shared.client.state_path()?.display().to_string();
            answer::json(&wire::Connection { argv: connection.argv, note: connection.note, state })
        }
        Op::Exec => exec::collected(asked, find().await?).await,
        Op::Stream => exec::streamed(asked, find().await?).await,
        Op::Execs | Op::Output | Op::SignalExec | Op::KillExec => {
            let found = shared.find(environment).await?;
            of_command(asked, found, op, exec.map_or("", String::as_str)).await
        }
        Op::RunCode | Op::CodeFiles | Op::CodeFile | Op::CleanCode | Op::CodeStatus => {
            let found = find().await?;
            code::code(asked, found, op, exec.map_or("", String::as_str)).await
        }
        Op::Verify | Op::Attestation | Op::Log | Op::Decisions => runs::record(asked, op, environment).await,
        _ => files::file(asked, find().await?, op).await,
    }
}

async fn of_command(mut asked: Asked, environment: Busy, op: Op, exec: &str) -> Result<Answer> {
    let sandbox = exec::machine(&asked.principal, &environment, asked.query.text("machine")?)?;
    match op {
        Op::Execs => {
            let execs = sandbox.execs().await?.iter().map(describe).collect();
            answer::json(&wire::Execs { execs })
        }
        Op::Output => exec::output(asked, environment, exec).await,
        Op::SignalExec => {
            let signal: wire::Signal = asked.intake.document().await?;
            sandbox.signal(exec.parse()?, tierbox::Signal::new(signal.signal)?).await?;
            answer::json(&wire::Done {})
        }
        _ => {
            sandbox.kill(exec.parse()?, KillReason::Cancelled).await?;
            answer::json(&wire::Done {})
        }
    }
}

fn describe(info: &ExecInfo) -> wire::ExecInfo {
    let outcome = match info.state {
        ExecState::Running => None,
        ExecState::Ended(completed) => Some(completed.outcome),
    };
    wire::ExecInfo {
        exec: info.id.to_string(),
        argv: info.argv.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect(),
        pid: info.pid,
        detached: info.detached,
        age: info.age.as_secs_f64(),
        outcome,
    }
}
