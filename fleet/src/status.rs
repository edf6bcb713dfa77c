//! `fleet status`: which keys devices live on, how old they are, who lags behind, and what needs a look.
//!
//! `reading` asks the hub, `observed` is what it said of one identity, `marks` judges, `selection` narrows and orders, and
//! `shown`, `document` and `html` put it into words. Nothing is changed anywhere, but for the page that was asked for.

mod document;
mod earlier;
pub(crate) mod html;
mod marks;
mod observed;
mod reading;
mod selection;
mod shown;
mod summary;

use crate::cli::StatusArgs;
use crate::clock::unix_now_secs;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use crate::secrets::log_in;
use document::Document;
use earlier::Earlier;
use marks::{Mark, marks};
use observed::Observed;
use reading::Reading;
use summary::Summary;

/// One identity, judged.
pub(crate) struct Row {
    pub(crate) observed: Observed,
    pub(crate) marks: Vec<Mark>,
}

pub(crate) async fn run(args: &StatusArgs, format: Format) -> Result<Exit, Failure> {
    args.html.as_deref().map(html::check).transpose()?;
    let earlier = args.since.as_deref().map(Earlier::read).transpose()?;
    let hub = log_in(&args.hub)?;
    let reading = Reading::new(&hub, args);
    let mut identities = reading.twins().await?;
    reading.registry(&mut identities).await;
    let judge = |observed: Observed| {
        let before = earlier.as_ref().and_then(|earlier| earlier.of(&observed.identity));
        let marks = marks(&observed, before, unix_now_secs());
        Row { observed, marks }
    };
    let mut rows: Vec<Row> = identities.into_iter().map(&judge).collect();
    reading.look_again(&mut rows, &judge).await;

    let now = unix_now_secs();
    let summary = Summary::of(&rows, now);
    let listed = selection::select(&rows, &args.selection, now);
    match format {
        Format::Json => output::json(&Document::new(hub.host_name(), now, &summary, &listed))?,
        Format::Table => {
            let (table, is_cut) = shown::table(&listed, now, output::terminal_width());
            output::table(&table)?;
            output::line("")?;
            if listed.len() < rows.len() {
                output::line(&format!("{} of {} listed", listed.len(), rows.len()))?;
            }
            for line in summary.lines() {
                output::line(&line)?;
            }
            if is_cut {
                output::note("fingerprints don't fit into this terminal: widen it, or take --output json");
            }
        }
    }
    if let Some(path) = &args.html {
        html::write(
            path,
            &html::page(hub.host_name(), args.target.as_deref(), &rows, &listed, &summary, now),
        )?;
        output::note(&format!("page written to {}", path.display()));
    }
    let exit = match (args.fail_on_marked && summary.marked > 0, reading.is_complete()) {
        (true, _) => Exit::Failed,
        (false, true) => Exit::Done,
        (false, false) => Exit::Partly,
    };
    reading.say_what_was_left_out(&rows);
    Ok(exit)
}
