//! Flags that make no server: refused by name before anything is written.

use clap::Parser as _;

#[derive(clap::Parser)]
struct Server {
    #[command(flatten)]
    args: apiserver::Args,
}

#[tokio::test]
async fn ranges_that_cannot_be_are_refused_by_name() {
    for (flags, words) in [
        (
            &["--public-prefix", "10.0.0.0/8,10.1.0.0/16"][..],
            &["--public-prefix", "10.1.0.0/16", "10.0.0.0/8"][..],
        ),
        (
            &[
                "--public-prefix=2001:db8:1::/48",
                "--public-prefix=2001:db8::/32",
            ],
            &["--public-prefix", "2001:db8::/32"],
        ),
        (
            &["--min-vni=300", "--max-vni=300"],
            &["--min-vni", "--max-vni"],
        ),
        (&["--max-vni=16777216"], &["--max-vni", "24 bits"]),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state");
        let first = [
            "apiserver".to_owned(),
            format!("--state={}", state.display()),
        ];
        let given = flags.iter().map(|flag| (*flag).to_owned());
        let Server { args } = Server::try_parse_from(first.into_iter().chain(given))
            .expect("each flag by itself is fine");
        let stop = tokio_util::sync::CancellationToken::new();
        let ended = tokio::time::timeout(crate::support::DEADLINE, apiserver::run(args, stop));
        let ended = ended.await.expect("it ends and does not serve");
        let error = ended.expect_err("refused");
        let text = format!("{error:#}");
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!state.exists(), "nothing was written");
    }
}
