//! `tierbox serve`.

use tierbox::{Error, ErrorKind};
use tierbox_serve::{Options, Server, Tokens};

use crate::args::ServeArgs;
use crate::interrupt::Failure;
use crate::{Context, output};

/// The most CPUs that make sense as a bound.
const MOST_CPUS: f64 = 1e6;

pub(crate) async fn serve(context: &mut Context, args: ServeArgs) -> Result<u8, Failure> {
    let options = options(args)?;
    let server = context.interrupts.guard(Server::bind(context.client.clone(), options)).await?;
    let (socket, address) = (server.socket().display().to_string(), server.address());
    if context.global.json {
        output::json(&serde_json::json!({ "socket": socket, "address": address.map(|address| address.to_string()) }));
    } else if !context.global.quiet {
        output::remark(&format!("listening on {socket}"));
        if let Some(address) = address {
            output::remark(&format!("listening on http://{address}"));
        }
    }
    match context.interrupts.guard(server.run(std::future::pending())).await {
        // Told to end, it has done what it should.
        Err(Failure::Interrupted(_)) | Ok(()) => Ok(0),
        Err(error) => Err(error),
    }
}

pub(crate) fn print_openapi() {
    let text = serde_json::to_string_pretty(&tierbox_serve::openapi()).unwrap_or_default();
    output::line(&text);
}

fn options(args: ServeArgs) -> Result<Options, Error> {
    let mut options = Options::default();
    options.socket = args.socket;
    options.tcp = args.tcp;
    options.tokens = args.tokens.map(|path| Tokens::read_or_make(&path)).transpose()?;
    options.ttl = args.ttl;
    options.idle = args.idle;
    if let Some(memory) = args.memory {
        options.budget.memory = Some(memory);
    }
    if let Some(cpus) = args.cpu {
        if !(0.0..=MOST_CPUS).contains(&cpus) {
            return Err(Error::new(ErrorKind::InvalidInput, "read command line", "--cpu is not a number of CPUs"));
        }
        options.budget.cpu_millis = Some((cpus * 1000.0) as u64);
    }
    options.budget.backends.extend(args.max);
    Ok(options)
}
