//! Calls of AWS's API: what is tried again, and how what remains is told.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ConnectorError, ProvideErrorMetadata, SdkError};
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;

/// What the SDK answers.
pub(crate) type Answer<T, E> = std::result::Result<T, SdkError<E, HttpResponse>>;

/// How often a call is made, and the pauses between: at first, and at most. About a minute together.
const TRIES: u32 = 14;
const PAUSES: (Duration, Duration) = (Duration::from_millis(60), Duration::from_secs(8));

/// Codes by which AWS says that there were too many calls.
const THROTTLED: &[&str] = &[
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottledException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "EC2ThrottledException",
    "SlowDown",
    "PriorRequestNotComplete",
    "BandwidthLimitExceeded",
    "LimitExceededException",
];

/// Codes by which AWS refuses who asks.
const REFUSED: &[&str] = &[
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidAccessKeyId",
    "InvalidToken",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "OptInRequired",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "IncompleteSignature",
    "RequestTimeTooSkewed",
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "UnauthorizedOperation",
    "AccessDenied",
    "AccessDeniedException",
];

/// Those of them that a wrong clock causes, too.
const SKEWED: &[&str] =
    &["RequestTimeTooSkewed", "RequestExpired", "SignatureDoesNotMatch", "InvalidSignatureException", "AuthFailure"];

/// Codes of a call that did not come through whole, whatever its status.
const BROKEN: &[&str] = &["RequestTimeout", "RequestTimeoutException"];

/// What to do where AWS throttles.
pub(crate) const FEWER: &str = "an account may make only so many calls a second, with whatever else calls AWS for it: start fewer at a \
                                time, or ask AWS for a higher quota";

/// How often a call is throttled in a row before that is worth a word, and how long ago the last time may be.
const STREAK: (u32, Duration) = (3, Duration::from_secs(30));

/// Calls of this process that AWS throttles, by name.
static STREAKS: Mutex<BTreeMap<String, Streak>> = Mutex::new(BTreeMap::new());

/// What became of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// There were too many calls; this one did nothing.
    Throttled,
    /// Nobody knows whether it took effect.
    Unknown,
    /// It was refused.
    Refused,
}

/// AWS's own code of an error; empty if it gave none.
pub(crate) fn code<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> &str {
    error.as_service_error().and_then(ProvideErrorMetadata::code).unwrap_or_default()
}

/// The HTTP status of an answer.
fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|raw| raw.status().as_u16())
}

/// Whether a call was not even made because nobody knows who asks. Who was only not told in time may be told next time.
fn lacks_credentials(failure: Option<&ConnectorError>) -> bool {
    failure.map(|error| chain(error)).is_some_and(|said| said.contains("credentials") && !said.contains("timed out"))
}

/// Whether a call was not made for a reason that lies here. A connection that went away under a call is called a fault of the user's
/// too, by the HTTP client.
fn is_ours(failure: Option<&ConnectorError>) -> bool {
    let dropped = |text: String| ["dispatch task is gone", "body write aborted"].iter().any(|why| text.contains(why));
    lacks_credentials(failure) || failure.is_some_and(|error| error.is_user() && !dropped(chain(error)))
}

/// Tells what became of a call that failed.
pub(crate) fn fate<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Fate {
    match error {
        SdkError::ConstructionFailure(_) => Fate::Refused,
        SdkError::DispatchFailure(failure) if is_ours(failure.as_connector_error()) => Fate::Refused,
        SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => Fate::Unknown,
        error if THROTTLED.contains(&code(error)) => Fate::Throttled,
        error if BROKEN.contains(&code(error)) => Fate::Unknown,
        // What stands before a service answers so, without a word of the service's.
        error if code(error).is_empty() && matches!(status(error), Some(408 | 429)) => Fate::Unknown,
        // An overloaded service answers 503 whatever its code; `Insufficient…` is an answer, though EC2 gives it a 500.
        error if code(error).starts_with("Insufficient") => Fate::Refused,
        error if status(error).is_some_and(|status| status >= 500) => Fate::Unknown,
        _ => Fate::Refused,
    }
}

/// An error for people: which call, what AWS said.
pub(crate) fn told<E>(tried: &'static str, call: &str, error: &SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let code = code(error);
    let said = error.as_service_error().and_then(ProvideErrorMetadata::message).unwrap_or_default();
    let said = match (code, said) {
        ("", _) => match status(error) {
            Some(status) => format!("HTTP {status}: {}; it answered {}", chain(error), answered(error)),
            None => chain(error),
        },
        (code, "") => code.to_owned(),
        (code, said) => format!("{code}: {}", shown(said)),
    };
    let no_credentials = matches!(error, SdkError::DispatchFailure(failure) if lacks_credentials(failure.as_connector_error()));
    if REFUSED.contains(&code) || no_credentials {
        let help = match SKEWED.contains(&code) {
            true => {
                "check this host's clock (AWS refuses what was signed minutes before or after its own time) and the credentials"
            }
            false => "check the credentials and their rights: infra/tierbox.yaml has a policy with all that is needed",
        };
        return Error::new(ErrorKind::Credentials, tried, format!("{call} was refused: {said}"))
            .with_backend(BACKEND)
            .with_help(help);
    }
    let kind = match fate(error) {
        Fate::Throttled => ErrorKind::LimitReached,
        // VcpuLimitExceeded, InstanceLimitExceeded, VolumeLimitExceeded: the account's quotas.
        Fate::Refused if code.ends_with("LimitExceeded") => ErrorKind::LimitReached,
        Fate::Unknown => ErrorKind::Lost,
        Fate::Refused => ErrorKind::HostUnable,
    };
    let failed = Error::new(kind, tried, format!("{call} failed: {said}")).with_backend(BACKEND).with_context("code", code);
    if fate(error) == Fate::Throttled { failed.with_help(FEWER) } else { failed }
}

/// A call that was throttled, and did not come through since.
struct Streak {
    tries: u32,
    first: Instant,
    last: Instant,
    said: String,
}

/// Notes what became of a call, for whoever waits in vain for what depends on it.
pub(crate) fn note<T, E: ProvideErrorMetadata>(call: &str, answer: &Answer<T, E>) {
    let mut streaks = STREAKS.lock().unwrap_or_else(PoisonError::into_inner);
    match answer {
        Ok(_) => drop(streaks.remove(call)),
        Err(error) if fate(error) == Fate::Throttled => {
            let now = Instant::now();
            let said = shown(&format!("{}: {}", code(error), error.as_service_error().and_then(|it| it.message()).unwrap_or("")));
            let streak =
                streaks.entry(call.to_owned()).or_insert(Streak { tries: 0, first: now, last: now, said: String::new() });
            *streak = Streak { tries: streak.tries + 1, first: streak.first, last: now, said };
        }
        Err(_) => {}
    }
}

/// What AWS throttles now, if it is anything: which call, how often in a row, for how long, and what it says.
pub(crate) fn throttled() -> Option<String> {
    let streaks = STREAKS.lock().unwrap_or_else(PoisonError::into_inner);
    let lasting = streaks.iter().filter(|(_, streak)| streak.tries >= STREAK.0 && streak.last.elapsed() < STREAK.1);
    lasting.max_by_key(|(_, streak)| streak.tries).map(|(call, streak)| {
        let time = streak.first.elapsed().as_secs();
        format!("AWS throttled {call} {} times in a row, for {time} s ({})", streak.tries, streak.said)
    })
}

/// The start of an answer that has no code, so that it tells who gave it: the service, or what stands before it.
fn answered<E>(error: &SdkError<E, HttpResponse>) -> String {
    match error.raw_response().and_then(|raw| raw.body().bytes()) {
        None => "with a body that was not read".to_owned(),
        Some([]) => "without a body".to_owned(),
        Some(body) => format!("{:?}", shown(&String::from_utf8_lossy(&body[..body.len().min(300)]))),
    }
}

/// The causes of an error in one line. The SDK puts no credential there.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        words.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    shown(&words)
}

/// One line, without control characters, not too long.
pub(crate) fn shown(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(500).collect()
}

/// Makes a call until it succeeds or is refused. Only for calls that may be made twice.
pub(crate) async fn again<T, E, F, Fut>(tried: &'static str, call: &str, make: F) -> Result<T>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    F: Fn() -> Fut,
    Fut: Future<Output = Answer<T, E>>,
{
    let mut pauses = Pauses::new();
    loop {
        let answer = make().await;
        note(call, &answer);
        let error = match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        match pauses.next() {
            Some(pause) if fate(&error) != Fate::Refused => tokio::time::sleep(pause).await,
            _ => return Err(told(tried, call, &error).with_context("tries", pauses.tries())),
        }
    }
}

/// Growing pauses with jitter.
pub(crate) struct Pauses {
    tries: u32,
    next: Duration,
}

impl Pauses {
    pub(crate) fn new() -> Self {
        Self { tries: 0, next: PAUSES.0 }
    }

    /// How many calls have failed.
    pub(crate) fn tries(&self) -> u32 {
        self.tries
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.tries += 1;
        if self.tries > TRIES {
            return None;
        }
        let pause = self.next;
        self.next = (pause * 2).min(PAUSES.1);
        Some(jittered(pause))
    }
}

/// Between half and one and a half of a time, so that many who wait do not come back together.
pub(crate) fn jittered(time: Duration) -> Duration {
    let mut byte = [128];
    // Without random numbers everybody waits the middle.
    let _ = getrandom::fill(&mut byte);
    time.mul_f64(0.5 + f64::from(byte[0]) / 255.0)
}

#[cfg(test)]
mod unit {
    use super::*;
    use aws_sdk_s3::error::ErrorMetadata;
    use aws_sdk_s3::operation::get_object::GetObjectError;

    #[test]
    fn pauses_grow_to_about_a_minute_and_end() {
        let all: Vec<Duration> = Pauses::new().collect();
        assert_eq!(all.len(), TRIES as usize);
        let total: Duration = all.iter().sum();
        assert!(total > Duration::from_secs(20) && total < Duration::from_secs(120), "{total:?}");
    }

    #[test]
    fn a_call_that_is_throttled_in_a_row_is_told_until_one_comes_through() {
        let throttled_once = || note::<(), _>("test:Throttled", &Err(failed(Some("ThrottlingException"), 400, "")));
        throttled_once();
        note::<(), _>("test:Throttled", &Err(failed(Some("InternalError"), 500, "")));
        throttled_once();
        assert_eq!(throttled(), None);
        throttled_once();
        let told = throttled().unwrap();
        assert!(told.contains("test:Throttled 3 times in a row") && told.contains("ThrottlingException"), "{told}");
        note::<_, GetObjectError>("test:Throttled", &Ok(()));
        assert_eq!(throttled(), None);
    }

    fn failed(code: Option<&str>, status: u16, body: &'static str) -> SdkError<GetObjectError, HttpResponse> {
        let mut meta = ErrorMetadata::builder();
        meta = if let Some(code) = code { meta.code(code) } else { meta };
        let raw = HttpResponse::new(status.try_into().unwrap(), aws_smithy_types::body::SdkBody::from(body));
        SdkError::service_error(GetObjectError::generic(meta.build()), raw)
    }

    #[test]
    fn an_answer_without_a_code_is_shown_as_it_was() {
        let told = told("fetch", "s3:GetObject", &failed(None, 400, "<html>\nbusy</html>"));
        assert!(told.message().contains("HTTP 400") && told.message().contains("<html> busy</html>"), "{told}");
        let empty = super::told("fetch", "s3:GetObject", &failed(None, 400, ""));
        assert!(empty.message().contains("without a body"), "{empty}");
    }

    #[test]
    fn what_a_wrong_clock_causes_is_told_and_quotas_are_limits() {
        for code in ["RequestTimeTooSkewed", "InvalidSignatureException"] {
            let told = told("fetch", "s3:GetObject", &failed(Some(code), 403, ""));
            assert_eq!(told.kind(), ErrorKind::Credentials, "{told}");
            assert!(told.help().is_some_and(|help| help.contains("clock")), "{told}");
        }
        let quota = told("start instance", "ec2:RunInstances", &failed(Some("VcpuLimitExceeded"), 400, ""));
        assert_eq!(quota.kind(), ErrorKind::LimitReached, "{quota}");
        assert_eq!(fate(&failed(Some("RequestTimeout"), 400, "")), Fate::Unknown, "S3's word for a socket that stood still");
        assert_eq!(fate(&failed(Some("NoSuchKey"), 404, "")), Fate::Refused);
    }

    #[test]
    fn what_aws_says_is_shown_in_one_line() {
        assert_eq!(shown("a\nb\x1b[31m"), "a b [31m");
        assert_eq!(shown(&"x".repeat(9000)).len(), 500);
    }
}
