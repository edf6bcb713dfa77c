//! How an identity proves itself. Only symmetric keys can be used to connect here; the other kinds are kept and shown.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The registry's `authentication.type`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Authentication {
    /// Tokens signed with a symmetric key.
    #[default]
    Sas,
    /// A certificate known by its thumbprint.
    SelfSigned(Box<Thumbprints>),
    /// A certificate of an authority that the hub trusts.
    CertificateAuthority,
    /// None of its own: a module or device that others speak for.
    None,
}

/// SHA-1 or SHA-256 of certificates, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Thumbprints {
    pub(crate) primary: Option<String>,
    pub(crate) secondary: Option<String>,
}

impl Authentication {
    /// The name in `authentication.type` and in a twin's `authenticationType`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Sas => "sas",
            Self::SelfSigned(_) => "selfSigned",
            Self::CertificateAuthority => "certificateAuthority",
            Self::None => "none",
        }
    }

    /// The primary and the secondary thumbprint, as far as there are any.
    pub(crate) fn thumbprints(&self) -> (Option<&str>, Option<&str>) {
        match self {
            Self::SelfSigned(thumbprints) => {
                (thumbprints.primary.as_deref(), thumbprints.secondary.as_deref())
            }
            Self::Sas | Self::CertificateAuthority | Self::None => (None, None),
        }
    }

    /// `x509Thumbprint` of identities and twins.
    pub(crate) fn thumbprints_view(&self) -> Value {
        let (primary, secondary) = self.thumbprints();
        json!({"primaryThumbprint": primary, "secondaryThumbprint": secondary})
    }
}
