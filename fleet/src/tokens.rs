//! `generate-sas-token` and `verify-sas-token`: SAS tokens at the shell.

use std::path::Path;

use serde_json::json;
use twinkey_sas::{Expiry, ResourceUri, Signer, Token, Verifier};

use crate::cli::{GenerateSasTokenArgs, VerifySasTokenArgs};
use crate::clock::unix_now_secs;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use crate::secrets;

/// Prints a token.
pub(crate) fn generate(args: &GenerateSasTokenArgs, format: Format) -> Result<Exit, Failure> {
    let resource = ResourceUri::from_plain(&args.resource);
    let resource = resource.map_err(|e| Failure::usage(format!("--resource: {e}")))?;
    let expiry = match args.expiry {
        Some(unix_secs) => Expiry::at(unix_secs),
        None => Expiry::after(unix_now_secs(), args.duration.as_secs())
            .ok_or_else(|| Failure::usage("--duration ends after the end of time"))?,
    };
    let signer = Signer::new(&secrets::read_key(&args.key_file)?);
    let mut buffer = [0; Token::MAX_LEN];
    let signed = match args.policy_name.as_deref() {
        Some(policy) => signer.sign_as(&resource, policy, expiry, &mut buffer),
        None => signer.sign(&resource, expiry, &mut buffer),
    };
    let token =
        signed.map_err(|e| Failure::usage(e.to_string()).next("shorten --policy-name or --resource"))?;
    match format {
        Format::Table => output::line(token.expose())?,
        Format::Json => output::json(&json!({"sas": token.expose(), "expiry": expiry.unix_secs()}))?,
    }
    Ok(Exit::Done)
}

/// Says whether the token on stdin is valid, and why not.
pub(crate) fn verify(args: &VerifySasTokenArgs, format: Format) -> Result<Exit, Failure> {
    if args.key_file == Path::new("-") {
        return Err(Failure::usage("stdin holds the token: the key must come from a file"));
    }
    let verifier = Verifier::new(&secrets::read_key(&args.key_file)?, None);
    let token = secrets::read_stdin("token")?;
    let now = args.now.unwrap_or_else(unix_now_secs);
    let verdict = verifier.verify(token.trim(), &args.resource, now);
    match (format, verdict) {
        (Format::Table, Ok(verified)) => {
            output::line(&format!("valid: expires at {}", verified.expiry.unix_secs()))?
        }
        (Format::Table, Err(error)) => output::line(&format!("not valid: {error}"))?,
        (Format::Json, Ok(verified)) => {
            output::json(&json!({"valid": true, "expiry": verified.expiry.unix_secs()}))?
        }
        (Format::Json, Err(error)) => output::json(&json!({"valid": false, "reason": error.to_string()}))?,
    }
    Ok(if verdict.is_ok() { Exit::Done } else { Exit::Failed })
}
