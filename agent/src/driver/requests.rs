//! What programs on this machine ask for: messages to send, the status, tokens, and a key that a person has brought.

use twinkey_rotation::{Brought, Input};
use zeroize::Zeroizing;

use super::Driver;
use super::outcomes::Kind;
use crate::chain::Chain;
use crate::local::{Replacement, Request};
use crate::store::{Files, StoreError};
use crate::{provision, token};

const NO_TOKENS: &str = "this agent makes no tokens for programs: whoever has one can connect as the device in its place. To allow it, write `tokens = true` into section [local] of the agent's configuration, and reload or restart it";

impl<F: Files + Send + 'static> Driver<F> {
    pub(super) fn asked(&mut self, request: Request) {
        // Whoever asked may have gone away meanwhile: nobody to tell.
        match request {
            Request::Publish(message) => self.outbox.push(message),
            Request::Status(answer) => {
                let _ = answer.send(self.status());
            }
            Request::Replace(replacement) => self.replace(replacement),
            Request::Token { ttl_secs, answer } => {
                let _ = answer.send(self.local_token(ttl_secs));
            }
        }
    }

    /// A person has brought a key: it is kept beside the others, and no key that works is lost for it.
    pub(super) fn replace(&mut self, replacement: Replacement) {
        let Replacement { registration, slot, key, answer } = replacement;
        if let Err(problem) = provision::check_same_device(&self.key_ring.registration, &registration) {
            // Whoever asked may have gone away meanwhile: nobody to tell, here and below.
            let _ = answer.send(Err(problem));
            return;
        }
        if let Err(left) = self.allowance.take(self.clock.now()) {
            let _ = answer.send(Err(format!(
                "too many keys were brought: nothing was changed. Wait {} s, then bring the device's present one",
                left.as_secs() + 1
            )));
            return;
        }
        let key = match self.key_ring.learn(*key) {
            Ok(key) => key,
            Err(error) => {
                let _ = answer.send(Err(format!("the key was not taken: {error}")));
                return;
            }
        };
        if self.state.live == Some(key) {
            let _ = answer.send(Err("this key is in use already: nothing was changed".to_owned()));
            return;
        }
        tracing::info!(%key, "a person has brought a key; it is stored and then tried");
        self.is_wake_due = true;
        if let Some((_, earlier)) = self.replacing.replace((key, answer)) {
            let _ = earlier.send(Err("another key was brought before this one was stored".to_owned()));
        }
        self.feed(Input::Brought(Brought { slot, key }));
        if self.state.is_surely_stored(key) {
            // Nothing to write: it is one of those that are tried anyway.
            self.answer_replacement(None);
            self.is_wake_due = false;
            self.wake();
        }
    }

    /// Tells whoever brought a key whether it is on disk.
    pub(super) fn answer_replacement(&mut self, error: Option<&StoreError>) {
        let Some((key, answer)) = self.replacing.take() else { return };
        if self.state.is_surely_stored(key) {
            let _ = answer.send(Ok(key.to_string()));
        } else if let Some(error) = error {
            let _ = answer.send(Err(format!(
                "the key is NOT stored yet, and would be lost if the agent ended now: {}. The write is repeated; {}, and see `twinkey-agent status`",
                Chain(error),
                Kind::Storage.advice()
            )));
        } else {
            // The write that has ended was another one.
            self.replacing = Some((key, answer));
        }
    }

    fn local_token(&self, ttl_secs: u64) -> Result<Zeroizing<String>, String> {
        if !self.config.local.tokens {
            return Err(NO_TOKENS.to_owned());
        }
        let key = self.state.live.or(self.state.ring.active_key()).and_then(|name| self.key_ring.key(name));
        let key = key.ok_or("there is no active key")?;
        token::for_program(key, &self.key_ring.registration, ttl_secs, self.clock.unix_secs())
    }
}
