//! A few calls of services whose whole SDK would take minutes to build: IAM, to read a role, and Route 53 Resolver, to read a firewall.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::aws::{Aws, driven};
use crate::call::{Pauses, shown};

const TRIED: &str = "check the account";
/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one that can be done without.
const BRIEF: Duration = Duration::from_secs(5);

/// A call's target.
struct Target<'a> {
    service: &'a str,
    region: &'a str,
    url: String,
    headers: Vec<(&'static str, String)>,
}

/// What refuses a call for the lack of a right, and of nothing else.
pub(crate) fn is_denied(error: &Error) -> bool {
    error.kind() == ErrorKind::Credentials && error.message().contains("AccessDenied")
}

/// A call of IAM; the answer is XML.
pub(crate) async fn iam(aws: &Aws, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
    let mut body = format!("Action={action}&Version=2010-05-08");
    for (key, value) in parameters {
        body.push_str(&format!("&{key}={}", escaped(value)));
    }
    let url = aws.account.endpoint.clone().unwrap_or_else(|| "https://iam.amazonaws.com".to_owned());
    let headers = vec![("content-type", "application/x-www-form-urlencoded".to_owned())];
    call(aws, &Target { service: "iam", region: "us-east-1", url, headers }, action, &body).await
}

/// The number of the account that asks; `None` where nobody says.
pub(crate) async fn account(aws: &Arc<Aws>) -> Option<String> {
    let asking = aws.clone();
    let asked = async move {
        let own = || format!("https://sts.{}.amazonaws.com", asking.region);
        let url = asking.account.endpoint.clone().unwrap_or_else(own);
        let headers = vec![("content-type", "application/x-www-form-urlencoded".to_owned())];
        let target = Target { service: "sts", region: &asking.region, url, headers };
        let answer = call(&asking, &target, "GetCallerIdentity", "Action=GetCallerIdentity&Version=2011-06-15").await?;
        let number = answer.split_once("<Account>").and_then(|(_, rest)| rest.split_once("</Account>")).map(|(number, _)| number);
        Ok(number.map(str::trim).filter(|number| !number.is_empty()).map(str::to_owned))
    };
    // Not every network lets that service through, and nothing else needs it.
    let asked = || async { tokio::time::timeout(BRIEF, driven(asked)).await.ok().and_then(Result::ok).flatten() };
    aws.owner.get_or_init(asked).await.clone()
}

/// A call of CloudFormation; the answer is XML.
pub(crate) async fn cloudformation(aws: &Aws, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
    let mut body = format!("Action={action}&Version=2010-05-15");
    for (key, value) in parameters {
        body.push_str(&format!("&{key}={}", escaped(value)));
    }
    let own = || format!("https://cloudformation.{}.amazonaws.com", aws.region);
    let url = aws.account.endpoint.clone().unwrap_or_else(own);
    let headers = vec![("content-type", "application/x-www-form-urlencoded".to_owned())];
    call(aws, &Target { service: "cloudformation", region: &aws.region, url, headers }, action, &body).await
}

/// A call of Route 53 Resolver.
pub(crate) async fn resolver(aws: &Aws, action: &str, body: &serde_json::Value) -> Result<serde_json::Value> {
    let own = || format!("https://route53resolver.{}.amazonaws.com", aws.region);
    let url = aws.account.endpoint.clone().unwrap_or_else(own);
    let headers =
        vec![("content-type", "application/x-amz-json-1.1".to_owned()), ("x-amz-target", format!("Route53Resolver.{action}"))];
    let target = Target { service: "route53resolver", region: &aws.region, url, headers };
    let answer = call(aws, &target, action, &body.to_string()).await?;
    serde_json::from_str(&answer)
        .map_err(|error| Error::new(ErrorKind::HostUnable, TRIED, format!("{action}: {error}")).with_backend(BACKEND))
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

async fn call(aws: &Aws, target: &Target<'_>, action: &str, body: &str) -> Result<String> {
    let mut pauses = Pauses::new();
    loop {
        let problem = match tokio::time::timeout(PATIENCE, once(aws, target, body)).await {
            Ok(Ok((200..300, text))) => return Ok(text),
            Ok(Ok((status, text))) if status < 500 && !text.contains("Throttl") => {
                return Err(refused(target, action, status, &text));
            }
            Ok(Ok((status, text))) => refused(target, action, status, &text),
            Ok(Err(error)) if error.kind() == ErrorKind::Credentials => return Err(error),
            Ok(Err(error)) => error,
            Err(_) => Error::new(ErrorKind::Lost, TRIED, format!("{action} was not answered")).with_backend(BACKEND),
        };
        match pauses.next() {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(problem),
        }
    }
}

fn refused(target: &Target<'_>, action: &str, status: u16, text: &str) -> Error {
    let denied = [
        "AccessDenied",
        "UnrecognizedClient",
        "InvalidClientTokenId",
        "ExpiredToken",
        "SignatureDoesNotMatch",
        "InvalidSignature",
        "MissingAuthenticationToken",
        "RequestExpired",
        "OptInRequired",
    ];
    let kind = if denied.iter().any(|word| text.contains(word)) { ErrorKind::Credentials } else { ErrorKind::HostUnable };
    let message = format!("{}:{action} was refused with status {status}: {}", target.service, shown(&said(text)));
    Error::new(kind, tried(action), message).with_backend(BACKEND)
}

/// What a call is a part of, for people.
fn tried(action: &str) -> &'static str {
    match action {
        "CreateStack" | "UpdateStack" => "deploy stack",
        "DeleteStack" => "remove stack",
        _ => TRIED,
    }
}

/// Code and message of an error in XML; any other answer as it is.
fn said(text: &str) -> String {
    let Ok(document) = roxmltree::Document::parse(text) else { return text.trim().to_owned() };
    let of = |name: &str| document.descendants().find(|node| node.tag_name().name() == name).and_then(|node| node.text());
    match (of("Code"), of("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        _ => text.trim().to_owned(),
    }
}

async fn once(aws: &Aws, target: &Target<'_>, body: &str) -> Result<(u16, String)> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Lost, TRIED, format!("{}: {}", target.service, shown(&error.to_string()))).with_backend(BACKEND)
    };
    let unknown = |error: String| {
        Error::new(ErrorKind::Credentials, TRIED, format!("nobody knows who asks: {}", shown(&error))).with_backend(BACKEND)
    };
    let provider = aws.credentials.as_ref().ok_or_else(|| unknown("there are no credentials".to_owned()))?;
    let credentials = provider.provide_credentials().await.map_err(|error| unknown(error.to_string()))?;
    let request = signed(target, body, credentials).map_err(|error| failed(&error))?;
    let connector = Connector::builder().tls_provider(Provider::Rustls(CryptoMode::Ring)).build();
    let response = connector.call(request).await.map_err(|error| failed(&error))?;
    let status = response.status().as_u16();
    let bytes = aws_sdk_s3::primitives::ByteStream::new(response.into_body()).collect().await.map_err(|error| failed(&error))?;
    Ok((status, String::from_utf8_lossy(&bytes.into_bytes()).into_owned()))
}

fn signed(
    target: &Target<'_>,
    body: &str,
    credentials: Credentials,
) -> std::result::Result<HttpRequest, Box<dyn std::error::Error + Send + Sync>> {
    let identity = credentials.into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(target.region)
        .name(target.service)
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()?
        .into();
    let url = format!("{}/", target.url.trim_end_matches('/'));
    let headers = target.headers.iter().map(|(name, value)| (*name, value.as_str()));
    let signable = SignableRequest::new("POST", url.as_str(), headers, SignableBody::Bytes(body.as_bytes()))?;
    let (instructions, _) = sign(signable, &parameters)?.into_parts();
    let mut request = http::Request::post(url).body(SdkBody::from(body))?;
    for (name, value) in &target.headers {
        request.headers_mut().insert(*name, value.parse()?);
    }
    instructions.apply_to_request_http1x(&mut request);
    Ok(request.try_into()?)
}

#[cfg(test)]
mod unit {
    #[test]
    fn an_error_is_told_by_its_code_and_message() {
        let xml =
            "<E xmlns=\"x\"><Error><Code>DependencyViolation</Code><Message>The vpc vpc-1 has dependencies</Message></Error></E>";
        assert_eq!(super::said(xml), "DependencyViolation: The vpc vpc-1 has dependencies");
        assert_eq!(super::said(" {\"__type\": \"X\"} "), "{\"__type\": \"X\"}");
        assert_eq!(super::said("<html>busy</html>"), "<html>busy</html>");
        assert_eq!(super::tried("DeleteStack"), "remove stack");
    }

    #[test]
    fn parameters_cannot_add_others() {
        assert_eq!(super::escaped("a&Action=DeleteRole b"), "a%26Action%3DDeleteRole%20b");
    }
}
