//! What an attacker brings: his own MQTT, HPKE, tokens and REST calls. Nothing of Twinkey's is used in here, so that a
//! mistake in our code can't hide from the attack.

pub(crate) mod hpke;
pub(crate) mod intruder;
pub(crate) mod mqtt;
pub(crate) mod rest;
pub(crate) mod token;
