//! Why nothing is done to a device: what could leave it dark, or hand its key to somebody else.

use twinkey_contract::KeySlot;

/// Why a device is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the device is disabled")]
    Disabled,
    #[error("no agent that speaks the twin contract reports which key the device uses")]
    NoAgent,
    #[error("the device is not connected, so it can't receive a key")]
    NotConnected,
    #[error("the agent has not reported yet which key the hub accepted")]
    ActiveUnknown,
    #[error("the registry holds none of the keys that the device reports")]
    KeyUnknown,
    #[error(
        "the registry does not hold the key that the device says it lives on; its only way back is its {slot} key"
    )]
    LastKey { slot: KeySlot },
    #[error("the report has no proof, so anybody who is connected as the device can have written it")]
    ProofMissing,
    #[error("the report's proof does not fit the report and the registry's key")]
    ProofFails,
    #[error("the report names another public key to seal to than the one that was believed before")]
    SealChanged,
    #[error("the report's sequence is lower than the one that was believed before")]
    ReportOld,
    #[error("there is no public key that can be believed to be the agent's, so no key can be sealed to it")]
    SealUnknown,
    #[error("the agent reports that somebody else connects as this device")]
    Duel,
    #[error("the device's twin is too large for its agent to read, so it can't see an offer")]
    TwinTooLarge,
    #[error("the device did not answer the challenge with the key that it reports to live on")]
    NotFresh,
    #[error("the device lives on its {slot} key")]
    SlotInUse { slot: KeySlot },
    #[error("with both keys regenerated at once, the device is cut off if it misses the delivery")]
    BothSlots,
    #[error("an offer stands in the twin: the device may just be moving to the slot")]
    OfferStands,
}

impl Refusal {
    /// Whether somebody who connects as the device with its key can bring it about, by what he reports or by being there.
    pub(crate) const fn may_be_a_thiefs(self) -> bool {
        match self {
            Self::NoAgent
            | Self::NotConnected
            | Self::ActiveUnknown
            | Self::KeyUnknown
            | Self::LastKey { .. }
            | Self::ProofMissing
            | Self::ProofFails
            | Self::SealChanged
            | Self::ReportOld
            | Self::Duel
            | Self::TwinTooLarge
            | Self::SlotInUse { .. } => true,
            Self::Disabled | Self::SealUnknown | Self::NotFresh | Self::BothSlots | Self::OfferStands => {
                false
            }
        }
    }

    /// The stable code in JSON output.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::NoAgent => "no-agent",
            Self::NotConnected => "not-connected",
            Self::ActiveUnknown => "active-unknown",
            Self::KeyUnknown => "key-unknown",
            Self::LastKey { .. } => "last-key",
            Self::ProofMissing => "proof-missing",
            Self::ProofFails => "proof-fails",
            Self::SealChanged => "seal-changed",
            Self::ReportOld => "report-old",
            Self::SealUnknown => "seal-unknown",
            Self::Duel => "duel",
            Self::TwinTooLarge => "twin-too-large",
            Self::NotFresh => "not-fresh",
            Self::SlotInUse { .. } => "slot-in-use",
            Self::BothSlots => "both-slots",
            Self::OfferStands => "offer-stands",
        }
    }

    /// What the operator can do instead of forcing it.
    pub(crate) fn advice(self) -> String {
        match self {
            Self::Disabled => "enable the device and wait until it is connected".to_owned(),
            Self::NoAgent => "install twinkey-agent on it and wait until it is connected".to_owned(),
            Self::NotConnected => "wait until it is connected".to_owned(),
            Self::ActiveUnknown => "wait until the agent has connected once, then repeat".to_owned(),
            Self::KeyUnknown => {
                "bring the device a connection string of today by hand: it can't reconnect".to_owned()
            }
            Self::LastKey { slot } => format!(
                "wait until it has fallen back to its {slot} key, at the latest when its token is renewed, and renew the {} key then",
                slot.other()
            ),
            Self::ProofMissing => {
                "find out who writes reports in the agent's place; if the agent is older than this program, update it"
                    .to_owned()
            }
            Self::ProofFails => {
                "look at the device: the report was forged, or comes from another device's key ring".to_owned()
            }
            Self::SealChanged => {
                "if the gateway was set up anew, say so with --trust-report; else somebody who has its key writes reports"
                    .to_owned()
            }
            Self::ReportOld => {
                "if the gateway was restored from an old image, say so with --trust-report; else somebody repeats an old report"
                    .to_owned()
            }
            Self::SealUnknown => {
                "update the agent, or bring the device its connection string by hand".to_owned()
            }
            Self::Duel => {
                "find the other program or thief and stop it; in an incident, renew with --incident".to_owned()
            }
            Self::TwinTooLarge => {
                "remove large properties from the twin; characters that the hub does not count make it large, too".to_owned()
            }
            Self::NotFresh => {
                "look who is connected as the device: the agent would have answered".to_owned()
            }
            Self::SlotInUse { slot } => {
                format!("renew the {} key first, so that the device moves to it", slot.other())
            }
            Self::BothSlots => "renew one key, then the other: --key-type in-turn".to_owned(),
            Self::OfferStands => "finish it: run again without --no-deliver".to_owned(),
        }
    }
}
