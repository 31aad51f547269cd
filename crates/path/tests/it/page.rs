//! Status pages of parts that answer, and of one that was stopped.

use std::time::{Duration, Instant};

use path::page::fetch;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Far beyond what anything here takes, even on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Asks a listener for a page, and answers with these bytes; the connection stays open meanwhile.
async fn ask(answer: &[u8]) -> anyhow::Result<Vec<u8>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let stream = TcpStream::connect(&address).await?;
    let (mut server, _) = listener.accept().await?;
    let play = async {
        let mut asked = [0; 1024];
        let len = server.read(&mut asked).await?;
        assert!(asked[..len].starts_with(b"GET /routes.json HTTP/1.1\r\n"));
        server.write_all(answer).await?;
        std::future::pending::<std::io::Result<()>>().await
    };
    tokio::select! {
        page = fetch(stream, &address, "/routes.json") => page,
        ended = play => panic!("{ended:?}"),
    }
}

#[tokio::test]
async fn a_page_is_read_and_a_refusal_is_told() {
    let page = ask(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
    assert_eq!(page.unwrap(), b"{}");
    let refused = ask(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
    let refused = refused.unwrap_err().to_string();
    assert_eq!(refused, "/routes.json: 404 Not Found");
}

/// Its kernel still takes connections and requests.
#[tokio::test]
async fn a_part_that_was_stopped_is_soon_given_up() {
    let started = Instant::now();
    let answer = tokio::time::timeout(DEADLINE, ask(b"")).await.unwrap();
    assert_eq!(answer.unwrap_err().to_string(), "no answer within 2 s");
    assert!(started.elapsed() >= path::page::BEGIN_TIMEOUT);
}
