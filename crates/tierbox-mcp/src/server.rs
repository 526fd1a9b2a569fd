//! The server: tools over a byte stream, with progress and cancellation.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, CustomRequest, CustomResult, ErrorCode,
    Implementation, ListToolsResult, PaginatedRequestParams, ProgressNotificationParam, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt};
use serde_json::{Value, json};
use tierbox::code::CodeSettings;
use tierbox::{AgentSandbox, Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::lines::{self, Lines};
use crate::{call, offer};

/// How often a running call reports.
const TICK: Duration = Duration::from_secs(1);

/// How long the client of a terminated run may go on reading why.
const FAREWELL: Duration = Duration::from_secs(5);

/// One sandbox as MCP tools.
#[derive(Clone)]
pub struct Server {
    agent: AgentSandbox,
    tools: Arc<Vec<Tool>>,
    about: String,
    ended: Arc<tokio::sync::Notify>,
}

impl Server {
    /// A server for an agent; `about` says to the model what it is in.
    pub fn new(agent: AgentSandbox, code: &CodeSettings, about: impl Into<String>) -> Self {
        let tools = Arc::new(offer::tools(&agent, code));
        Self { agent, tools, about: about.into(), ended: Arc::default() }
    }

    /// The names of the tools that are offered.
    pub fn offered(&self) -> Vec<&str> {
        self.tools.iter().map(|tool| tool.name.as_ref()).collect()
    }

    async fn answer(&self, name: &str, arguments: Value) -> Result<CallToolResult, ErrorData> {
        if !self.tools.iter().any(|tool| tool.name == name) {
            return Err(ErrorData::invalid_params(
                format!("there is no tool {name}; there are {}", self.offered().join(", ")),
                None,
            ));
        }
        let answered = call::call(&self.agent, name, arguments).await;
        if self.agent.is_terminated() {
            self.ended.notify_one();
        }
        match answered {
            Some(Ok(value)) => Ok(CallToolResult::success(vec![ContentBlock::text(value.to_string())]).with_structured(value)),
            Some(Err(error)) => Ok(CallToolResult::error(vec![ContentBlock::text(explain(&error))])),
            None => Err(ErrorData::internal_error(format!("the tool {name} is offered and does nothing"), None)),
        }
    }
}

/// The result with its data beside the text.
trait WithStructured {
    fn with_structured(self, value: Value) -> Self;
}

impl WithStructured for CallToolResult {
    fn with_structured(mut self, value: Value) -> Self {
        self.structured_content = Some(value);
        self
    }
}

/// An error as a model can use it: what happened, what to do, and whether trying again makes sense.
fn explain(error: &Error) -> String {
    let mut text = format!("{} failed ({}): {}", error.operation(), error.kind(), error.message());
    if let Some(help) = error.help() {
        text.push_str(&format!("\nWhat to do: {help}"));
    }
    if error.is_retryable() {
        text.push_str("\nThe same call may succeed later.");
    }
    text
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("tierbox", env!("CARGO_PKG_VERSION")))
            .with_instructions(self.about.clone())
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.tools.to_vec()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = Value::Object(request.arguments.unwrap_or_default());
        let work = self.answer(&request.name, arguments);
        // Dropping the work kills what it started.
        let answered = tokio::select! {
            answered = with_progress(work, &request.name, &context) => answered?,
            () = context.ct.cancelled() => CallToolResult::error(vec![ContentBlock::text("cancelled: what it started was killed")]),
        };
        Ok(answered.into())
    }

    /// What the library could not read as a request that it knows.
    async fn on_custom_request(
        &self,
        request: CustomRequest,
        _context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        Err(misunderstood(&request.method, request.params))
    }
}

/// Why a request was not understood: it is too long or no JSON, its parameters are not those of its method, or there is no such method.
fn misunderstood(method: &str, params: Option<Value>) -> ErrorData {
    match method {
        lines::TOO_LONG => {
            let message = format!("the message is longer than {} bytes; pass large contents in several calls", lines::LONGEST);
            ErrorData::invalid_request(message, None)
        }
        lines::NO_JSON => {
            let why = params.as_ref().and_then(|params| params["why"].as_str()).unwrap_or_default();
            ErrorData::parse_error(format!("the message is no JSON: {why}"), None)
        }
        "tools/call" => {
            let read = serde_json::from_value::<CallToolRequestParams>(params.unwrap_or(Value::Null));
            let why = read.err().map_or_else(String::new, |error| format!(": {error}"));
            let message = format!("tools/call takes an object with the tool's `name` and an object of `arguments`{why}");
            ErrorData::invalid_params(message, None)
        }
        "initialize" | "ping" | "tools/list" => {
            ErrorData::invalid_params(format!("the parameters are not those of {method}"), None)
        }
        _ => ErrorData::new(ErrorCode::METHOD_NOT_FOUND, format!("there is no method {method:?}"), None),
    }
}

/// Does the work, and tells the client each second that it goes on.
async fn with_progress<T>(work: impl Future<Output = T>, tool: &str, context: &RequestContext<RoleServer>) -> T {
    let Some(token) = context.meta.get_progress_token() else { return work.await };
    let (started, mut ticks) = (Instant::now(), tokio::time::interval(TICK));
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = ticks.tick() => {
                let elapsed = started.elapsed().as_secs_f64();
                let progress = ProgressNotificationParam::new(token.clone(), elapsed)
                    .with_message(format!("{tool} has been running for {elapsed:.0} s"));
                // A client that went away ends the call by itself.
                let _ = context.peer.notify_progress(progress).await;
            }
        }
    }
}

/// Serves one client until it goes away, or the run is terminated by a decision.
///
/// # Errors
/// `Protocol` for a client that does not speak MCP; `PolicyDenied` if a decision terminated the run.
pub async fn serve<R, W>(server: Server, input: R, output: W) -> Result<()>
where
    R: AsyncRead + Send + Sync + Unpin + 'static,
    W: AsyncWrite + Send + Sync + Unpin + 'static,
{
    let (agent, ended) = (server.agent.clone(), server.ended.clone());
    let failed = |error: String| Error::new(ErrorKind::Protocol, "serve MCP", error);
    let service = server.serve((Lines::new(input), output)).await.map_err(|error| failed(error.to_string()))?;
    let stop = service.cancellation_token();
    let waiting = service.waiting();
    tokio::pin!(waiting);
    tokio::select! {
        _ = &mut waiting => {}
        () = ended.notified() => {
            let _ = tokio::time::timeout(FAREWELL, &mut waiting).await;
            stop.cancel();
        }
    }
    if agent.is_terminated() {
        return Err(Error::new(ErrorKind::PolicyDenied, "serve MCP", "a decision terminated the run"));
    }
    Ok(())
}

/// What the model is told it is in.
impl Server {
    /// A sentence about an environment's report.
    pub fn about(report: &tierbox::Report) -> String {
        let about = json!({ "tier": report.tier.to_string(), "backend": report.backend, "notes": report.notes });
        format!("Tools of a tierbox sandbox: {about}. Nothing outside it can be reached but what the tier allows.")
    }
}
