//! The hub's REST interface, as somebody with one policy's key can use it.

use reqwest::{Method, StatusCode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use twinkey_tests::hub::TestHub;
use twinkey_tests::waiting::PATIENCE;

use super::token;

/// Somebody with a policy's key.
#[derive(Clone)]
pub(crate) struct Backend {
    http: reqwest::Client,
    base: String,
    authorization: String,
}

impl Backend {
    /// `service` may write and read twins (ServiceConnect), `registryRead` may read the registry and query.
    pub(crate) fn of(hub: &TestHub, policy: &str) -> Self {
        let kept = std::fs::read(hub.login_file().with_file_name("policies.json")).unwrap();
        let kept: Value = serde_json::from_slice(&kept).unwrap();
        let key = kept[policy]["primaryKey"].as_str().unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(hub.ca_file()).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).timeout(PATIENCE);
        Self {
            http: http.build().unwrap(),
            base: format!("https://localhost:{}", hub.https_port()),
            authorization: token::of_policy(hub.host_name(), policy, key),
        }
    }

    /// Merges into the desired properties.
    pub(crate) async fn desire(&self, device: &str, desired: Value) {
        self.patch(device, json!({"properties": {"desired": desired}})).await;
    }

    /// Merges into the tags.
    pub(crate) async fn tag(&self, device: &str, tags: Value) {
        self.patch(device, json!({"tags": tags})).await;
    }

    /// The twin as a back end reads it.
    pub(crate) async fn twin(&self, device: &str) -> Value {
        let (status, twin) = self.call(Method::GET, &format!("/twins/{device}"), None).await;
        assert_eq!(status, StatusCode::OK, "{twin}");
        twin
    }

    /// The next offer that stands in the device's twin.
    pub(crate) async fn next_offer(&self, device: &str) -> Value {
        loop {
            let offer = self.twin(device).await["properties"]["desired"]["keyRenewal"].take();
            if offer.is_object() {
                return offer;
            }
        }
    }

    /// Calls a direct method.
    pub(crate) async fn call_method(&self, device: &str, name: &str, payload: Value) -> (StatusCode, Value) {
        let body = json!({"methodName": name, "payload": payload, "responseTimeoutInSeconds": 15});
        self.call(Method::POST, &format!("/twins/{device}/methods"), Some(body)).await
    }

    /// What a query finds.
    pub(crate) async fn query(&self, query: &str) -> (StatusCode, Value) {
        self.call(Method::POST, "/devices/query", Some(json!({"query": query}))).await
    }

    /// Any call; the answer's body is null where it is not JSON.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let url = format!("{}{path}?api-version=2021-04-12", self.base);
        let mut request = self.http.request(method, url).header("authorization", &self.authorization);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
    }

    async fn patch(&self, device: &str, body: Value) {
        let (status, answer) = self.call(Method::PATCH, &format!("/twins/{device}"), Some(body)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
}
