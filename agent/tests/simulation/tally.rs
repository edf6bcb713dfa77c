//! How often each fault and each outcome occurred: what never occurs is not tested.

macro_rules! seen {
    ($($name:ident),* $(,)?) => {
        /// Something that a history can contain.
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum Seen { $($name),* }

        impl Seen {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

seen! {
    // What the agent came to.
    Connected,
    Takeover,
    Fallback,
    Proved,
    ReportedWithoutActive,
    UnauthenticatedReported,
    TooManyOffersReported,
    TakenUpWithoutAuth,
    Committed,
    Rejected,
    Invalid,
    WaitingForDisk,
    Retried,
    Replaced,
    ClockCorrected,
    RestoredReported,
    DuelReported,
    MessageAcknowledged,
    MessageDuplicated,
    // The hub.
    Refused,
    SpuriousRefusal,
    RefusalKickedLive,
    ConnackNever,
    ConnackLate,
    HubUnavailable,
    HubHungUp,
    HubRestart,
    HubRestartAtConnect,
    TokenRunOut,
    TwinRefused,
    TwinUnanswered,
    ReportRefused,
    ReportUnanswered,
    HintLost,
    HintTwice,
    HintLate,
    AckLate,
    AckLost,
    DroppedOnKeyChange,
    RefusedNotYetPropagated,
    AcceptedOldKey,
    // The network.
    DialRefused,
    Cut,
    Torn,
    Stalled,
    // The disk.
    WriteFailed,
    SyncFailed,
    DirectorySyncFailed,
    SlowSync,
    // The process.
    Killed,
    PowerCut,
    KilledInWrite,
    StoppedCleanly,
    OldImageRestored,
    Reloaded,
    // The clock.
    ClockJumpedBack,
    ClockJumpedAhead,
    // The operator.
    KeyChanged,
    OfferedPlain,
    OfferedSealed,
    OfferedTwoSlots,
    OfferedHeldKey,
    OfferedForeignKey,
    OfferedRubbish,
    OfferChangedMidTrial,
    SlotsSwapped,
    ActiveKeyDestroyed,
    BothKeysDestroyed,
    OfferErased,
    SecondAgent,
    // Somebody who may write twins.
    StrangerWithoutAuth,
    StrangerWithFalseAuth,
    StrangerWithBorrowedAuth,
    StrangerCopiedBack,
    StrangerFloods,
}

/// Counts.
#[derive(Clone)]
pub(crate) struct Tally(Vec<u64>);

impl Tally {
    pub(crate) fn new() -> Self {
        Self(vec![0; Seen::ALL.len()])
    }

    pub(crate) fn count(&mut self, seen: Seen) {
        self.0[seen as usize] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (ours, theirs) in self.0.iter_mut().zip(&other.0) {
            *ours += theirs;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Seen, u64)> {
        Seen::ALL.iter().copied().zip(self.0.iter().copied())
    }
}
