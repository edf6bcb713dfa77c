//! The system's root certificates: where OpenSSL's are, or where `SSL_CERT_FILE` and `SSL_CERT_DIR` say.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject as _};

/// Adds them. One at a time: all of them in memory at once would leave holes of hundreds of KiB behind in an agent that
/// takes little more for the rest of its life. What can't be read is the system's affair as long as others remain.
pub(super) fn add_system_roots(roots: &mut RootCertStore) {
    add_roots(&Places::find(), roots);
}

fn add_roots(places: &Places, roots: &mut RootCertStore) {
    let mut seen = HashSet::new();
    if let Some(file) = &places.file {
        add_file(file, &mut seen, roots);
    }
    for directory in &places.directories {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            add_file(&entry.path(), &mut seen, roots);
        }
    }
    roots.roots.shrink_to_fit();
}

struct Places {
    file: Option<PathBuf>,
    directories: Vec<PathBuf>,
}

impl Places {
    fn find() -> Self {
        let file = std::env::var_os(openssl_probe::ENV_CERT_FILE).map(PathBuf::from);
        let directories = std::env::var_os(openssl_probe::ENV_CERT_DIR).unwrap_or_default();
        let directories: Vec<PathBuf> =
            std::env::split_paths(&directories).filter(|path| !path.as_os_str().is_empty()).collect();
        if file.is_some() || !directories.is_empty() {
            return Self { file, directories };
        }
        let found = openssl_probe::probe();
        Self { file: found.cert_file, directories: found.cert_dir }
    }
}

/// Directories hold links to their own files, and mostly what the one file holds, too: each file is read once, each root
/// kept once.
fn add_file(path: &Path, seen: &mut HashSet<(u64, u64)>, roots: &mut RootCertStore) {
    let Ok(metadata) = fs::metadata(path) else { return };
    if !metadata.is_file() || !seen.insert((metadata.dev(), metadata.ino())) {
        return;
    }
    for certificate in CertificateDer::pem_file_iter(path).into_iter().flatten() {
        match certificate {
            Ok(certificate) => {
                if roots.add(certificate).is_ok() && is_last_known(roots) {
                    roots.roots.pop();
                }
            }
            // A disk that fails would say so for ever.
            Err(pem::Error::Io(_)) => return,
            Err(_) => {}
        }
    }
}

fn is_last_known(roots: &RootCertStore) -> bool {
    roots.roots.split_last().is_some_and(|(last, others)| others.contains(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two authorities that sign nothing any more: their keys were thrown away.
    const ONE: &str = "-----BEGIN CERTIFICATE-----
MIIBgzCCASmgAwIBAgIUGJWbg7gDGBbpvVoXzHEabn+yZDQwCgYIKoZIzj0EAwIw
DjEMMAoGA1UEAwwDb25lMCAXDTI2MTEyMTEzNTgzMloYDzIxMjYxMDI4MTM1ODMy
WjAOMQwwCgYDVQQDDANvbmUwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAT2gP8a
BSbG6vTeO/CzdWypDnc/XjEMVCVA88t1Foua6k2Gzt95TWnFJ8ZwrQeoIcDbFP5G
VURYOLlnZlsvDD6Oo2MwYTAdBgNVHQ4EFgQUXhbssb3O2H9+hi2bHla3RGaQUDQw
HwYDVR0jBBgwFoAUXhbssb3O2H9+hi2bHla3RGaQUDQwDwYDVR0TAQH/BAUwAwEB
/zAOBgNVHQ8BAf8EBAMCAgQwCgYIKoZIzj0EAwIDSAAwRQIhAKiSVw15MnfEU77o
CVHIpKqUXLY2ROY+cDcqB/Xk9PwRAiBtv1banIGxB4iqc0jUG1bdbc3CnV52WgF6
YBkcKKstyw==
-----END CERTIFICATE-----
";
    const TWO: &str = "-----BEGIN CERTIFICATE-----
MIIBgjCCASmgAwIBAgIUNQBG3zHfWM6IFpHFLo50EXK8MX0wCgYIKoZIzj0EAwIw
DjEMMAoGA1UEAwwDdHdvMCAXDTI2MTEyMTEzNTgzMloYDzIxMjYxMDI4MTM1ODMy
WjAOMQwwCgYDVQQDDAN0d28wWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQAE31z
g9nXCtT5PcozmGunTBF8MlsUZIevpaaEkpIu59pF0pYtTUUeJKUgmZMV1ODz5K9B
5yqPWxZhl11DCVY4o2MwYTAdBgNVHQ4EFgQUz3rC5wDZFN1k4pjCYWvxBIbP4/8w
HwYDVR0jBBgwFoAUz3rC5wDZFN1k4pjCYWvxBIbP4/8wDwYDVR0TAQH/BAUwAwEB
/zAOBgNVHQ8BAf8EBAMCAgQwCgYIKoZIzj0EAwIDRwAwRAIgWPiMn/8CzWH89F20
43BlxmZjenb2bApe99k8Dv3bSgcCIHMcz6NqZOqYyheXjAtfxFXwu3VqJF3hTS37
lYM80wEI
-----END CERTIFICATE-----
";

    #[test]
    fn each_root_is_kept_once_however_often_it_lies_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("bundle.pem"), format!("# the first\n{ONE}\n{TWO}{ONE}")).unwrap();
        fs::write(path("copy.pem"), TWO).unwrap();
        fs::write(path("cut.pem"), &ONE[..200]).unwrap();
        fs::write(path("README"), "no certificate").unwrap();
        fs::create_dir(path("more")).unwrap();
        std::os::unix::fs::symlink("bundle.pem", path("4a6481c9.0")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("dangling.0")).unwrap();
        let directories = vec![dir.path().to_owned(), path("missing")];
        for (places, count) in [
            (Places { file: Some(path("bundle.pem")), directories: vec![] }, 2),
            (Places { file: Some(path("bundle.pem")), directories: directories.clone() }, 2),
            (Places { file: None, directories }, 2),
            (Places { file: Some(path("copy.pem")), directories: vec![] }, 1),
            (Places { file: Some(path("cut.pem")), directories: vec![path("missing")] }, 0),
        ] {
            let mut roots = RootCertStore::empty();
            add_roots(&places, &mut roots);
            assert_eq!(roots.len(), count, "{:?} {:?}", places.file, places.directories);
        }
    }
}
