//! A plain HTTP/1.1 client over TLS: one connection, no pool, no retries, little of its own cost. The server benchmark uses it too.

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Address and certificates of a server's administrator.
pub struct Credentials {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Credentials {
    /// From the lines of a kubeconfig that the server wrote.
    pub fn read(kubeconfig: &Path) -> anyhow::Result<Credentials> {
        use base64::Engine as _;
        let text = std::fs::read_to_string(kubeconfig)?;
        let field = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.trim().strip_prefix(name))
                .context("a kubeconfig of ours");
            line.map(|value| value.trim().trim_matches('"').to_owned())
        };
        let data = |name: &str| {
            anyhow::Ok(base64::engine::general_purpose::STANDARD.decode(field(name)?)?)
        };
        let address = field("server:")?.trim_start_matches("https://").parse()?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&data("certificate-authority-data:")?) {
            roots.add(certificate?)?;
        }
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(&data("client-certificate-data:")?).collect();
        let key = PrivateKeyDer::from_pem_slice(&data("client-key-data:")?)?;
        let tls = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain?, key)?;
        Ok(Credentials {
            address,
            tls: Arc::new(tls),
        })
    }
}

impl Credentials {
    /// A TLS connection; `protocols` are offered in the handshake (ALPN, RFC 7301).
    pub async fn open(&self, protocols: &[&[u8]]) -> anyhow::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let mut tls = ClientConfig::clone(&self.tls);
        tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from("127.0.0.1")?;
        Ok(TlsConnector::from(Arc::new(tls))
            .connect(name, stream)
            .await?)
    }
}

pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    _connection: JoinSet<()>,
}

/// Chunks of an answer that does not end.
pub struct Chunks(Incoming);

impl Chunks {
    /// The next chunk; none when the stream ends.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.0.frame().await?.ok()?.into_data().ok()
    }
}

impl Client {
    pub async fn connect(credentials: &Credentials) -> anyhow::Result<Client> {
        let stream = credentials.open(&[]).await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(connection.await) });
        Ok(Client {
            sender,
            _connection: tasks,
        })
    }

    /// An answer with its headers.
    pub async fn answer(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<http::Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.sender.ready().await?;
        Ok(self
            .sender
            .send_request(request.body(Full::default())?)
            .await?)
    }

    /// Code and body of the answer to one request.
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        media_type: &str,
        body: String,
    ) -> anyhow::Result<(u16, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1")
            .header("content-type", media_type)
            .body(Full::from(body))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let code = response.status().as_u16();
        Ok((code, response.into_body().collect().await?.to_bytes()))
    }

    pub async fn get(&mut self, path: &str) -> anyhow::Result<(u16, Bytes)> {
        let response = self.answer("GET", path, &[]).await?;
        let code = response.status().as_u16();
        Ok((code, response.into_body().collect().await?.to_bytes()))
    }

    pub async fn stream(&mut self, path: &str) -> anyhow::Result<Chunks> {
        let response = self.answer("GET", path, &[]).await?;
        anyhow::ensure!(
            response.status().is_success(),
            "watch answered {}",
            response.status()
        );
        Ok(Chunks(response.into_body()))
    }
}
