//! `tierbox up`.

use std::time::{Duration, SystemTime};

use tierbox::Hold;

use crate::args::UpArgs;
use crate::commands::starting;
use crate::interrupt::Failure;
use crate::{Context, output};

/// The life of a sandbox for which nobody says anything else.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn up(context: &mut Context, args: UpArgs) -> Result<u8, Failure> {
    let mut options = starting::options(context, &args.start);
    options.name = args.name;
    options.lifetime = args.lifetime;
    let stated = context.client.resolve(args.start.profile.as_str(), &options)?.limits.lifetime;
    let lifetime = stated.unwrap_or(LIFETIME);
    options.lifetime = Some(lifetime);
    options.hold = Some(Hold::Until(SystemTime::now() + lifetime));
    let running = starting::start(context, &args.start, options, None).await?;
    if context.global.json {
        output::json(&starting::describe(&running));
    } else {
        output::line(running.id());
    }
    Ok(0)
}
