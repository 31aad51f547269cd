//! The real kubectl against the server over TLS: every command that the features list names.

use crate::support::server;
use apiserver::testing::TestServer;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// kubectl 1.32 itself: the dispatching wrapper of some distributions would pick a version on its own.
fn binary() -> PathBuf {
    let link =
        std::fs::canonicalize("/usr/bin/kubectl").unwrap_or_else(|_| PathBuf::from("kubectl"));
    let exact = link.with_file_name("kubectl.1.32");
    if exact.exists() {
        exact
    } else {
        PathBuf::from("kubectl")
    }
}

struct Kubectl {
    home: TempDir,
    _server: TestServer,
}

impl Kubectl {
    async fn new() -> Kubectl {
        let server = server().await;
        let home = tempfile::tempdir().expect("a folder");
        server
            .write_kubeconfig(&home.path().join("config"))
            .expect("a kubeconfig");
        Kubectl {
            home,
            _server: server,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file");
        path.to_string_lossy().into_owned()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(binary());
        command
            .args(words(line))
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("KUBECONFIG", self.path("config"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> (bool, String, String) {
        shown(
            self.command(line)
                .output()
                .expect("kubectl runs; install kubectl 1.32"),
        )
    }

    /// Runs a command that must succeed and returns what it prints.
    fn ok(&self, line: &str) -> String {
        let (good, out, err) = self.run(line);
        assert!(good, "kubectl {line}\nstdout: {out}\nstderr: {err}");
        out
    }

    /// Runs a command that must fail and returns its complaint.
    fn fails(&self, line: &str) -> String {
        let (good, out, err) = self.run(line);
        assert!(!good, "kubectl {line} succeeded: {out}");
        format!("{out}{err}")
    }

    fn has(&self, line: &str, expected: &str) {
        let out = self.ok(line);
        assert!(
            out.contains(expected),
            "kubectl {line}\nwants: {expected}\nprints: {out}"
        );
    }

    fn stdin(&self, line: &str, text: &str) -> String {
        let mut child = self
            .command(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        child
            .stdin
            .take()
            .expect("stdin")
            .write_all(text.as_bytes())
            .expect("kubectl reads");
        let (good, out, err) = shown(child.wait_with_output().expect("kubectl ends"));
        assert!(good, "kubectl {line}\nstdout: {out}\nstderr: {err}");
        out
    }
}

fn shown(output: Output) -> (bool, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Splits like a shell that knows single quotes only.
fn words(line: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => out.push(String::new()),
            c => out.last_mut().expect("a word").push(c),
        }
    }
    out.retain(|word| !word.is_empty());
    out
}

const NETWORK: &str =
    "apiVersion: networking.openkcm.dev/v1alpha1\nkind: Network\nmetadata:\n  name: shop\n";
const DOCUMENTED: &str = "apiVersion: networking.OpenKCM.dev/v1alpha1\nkind: VirtualIP\nmetadata:\n  name: virtualip-sample\nspec:\n  type: Public\n  ipFamily: IPv4\n";

async fn in_shell(test: impl FnOnce(Kubectl) + Send + 'static) {
    let kubectl = Kubectl::new().await;
    tokio::task::spawn_blocking(move || test(kubectl))
        .await
        .expect("the test passes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_and_explain() {
    in_shell(|k| {
        assert!(k.ok("version -o json").contains("openkcm"));
        let resources = k.ok("api-resources --no-headers");
        for kind in [
            "networks",
            "virtualips",
            "machines",
            "configmaps",
            "leases",
            "ipaddresses",
        ] {
            assert!(resources.contains(kind), "{kind} is missing in {resources}");
        }
        let networks = resources
            .lines()
            .filter(|line| {
                line.contains(" networking.openkcm.dev/") && line.starts_with("networks ")
            })
            .count();
        assert_eq!(networks, 1, "every kind is listed once:\n{resources}");
        assert!(
            !resources.contains("OpenKCM.dev"),
            "the documented spelling is not listed again:\n{resources}"
        );
        assert!(
            k.ok("api-versions")
                .contains("networking.openkcm.dev/v1alpha1")
        );
        let text = k.ok("explain virtualip.spec");
        assert!(
            text.contains("ipFamily") && text.contains("FIELDS"),
            "{text}"
        );
        assert!(k.ok("explain networks --recursive").contains("peerings"));
        k.has("explain ips.core.apinet.openkcm.dev.spec.ip", "FIELD: ip");
        k.has("explain configmap", "ConfigMap");
        k.has("get --raw /readyz?verbose", "[+]storage ok");
        k.has("get --raw /metrics", "apiserver_request_total");
        let complaint = k.fails("get --raw /api/v1/configmaps?resourceVersion=99999999");
        assert!(
            complaint.contains("Too large resource version"),
            "{complaint}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_manifest_applies_verbatim() {
    in_shell(|k| {
        let file = k.file("vip.yaml", DOCUMENTED);
        k.has(&format!("apply -f {file}"), "created");
        k.has(&format!("apply -f {file}"), "unchanged");
        k.has(
            "get virtualip virtualip-sample -o yaml",
            "apiVersion: networking.openkcm.dev/v1alpha1",
        );
        k.has(&format!("get -f {file}"), "virtualip-sample");
        k.has(
            &format!("apply --server-side --force-conflicts -f {file}"),
            "serverside-applied",
        );
        k.ok(&format!("diff -f {file}"));
        k.has(&format!("delete -f {file}"), "deleted");
        k.has(&format!("create -f {file}"), "created");
        k.has(&format!("replace -f {file}"), "replaced");
        k.ok(&format!("delete -f {file} --wait=true --timeout=20s"));
        assert!(
            k.fails("get virtualip virtualip-sample")
                .contains("NotFound")
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_come_change_and_go() {
    in_shell(|k| {
        let file = k.file("network.yaml", NETWORK);
        k.has(&format!("create -f {file}"), "network.networking.openkcm.dev/shop created");
        assert!(k.fails(&format!("create -f {file}")).contains("AlreadyExists"));
        k.has("get networks.networking.openkcm.dev", "shop");
        k.has("get networks.networking.openkcm.dev shop -o wide", "AGE");
        k.has("get networks.networking.openkcm.dev -A -o name", "network.networking.openkcm.dev/shop");
        k.has("get networks.networking.openkcm.dev shop -o jsonpath='{.metadata.generation}'", "1");
        k.has("label networks.networking.openkcm.dev shop tier=front", "labeled");
        k.has("get networks.networking.openkcm.dev -l tier=front", "shop");
        assert!(!k.ok("get networks.networking.openkcm.dev -l tier!=front").contains("shop"));
        k.has("get networks.networking.openkcm.dev --field-selector metadata.name=shop", "shop");
        k.has("annotate networks.networking.openkcm.dev shop note=x", "annotated");
        k.has("patch networks.networking.openkcm.dev shop --type merge -p '{\"spec\":{\"providerID\":\"openkcm-net://a/b/7/c\"}}'", "patched");
        k.has("patch networks.networking.openkcm.dev shop --type json -p '[{\"op\":\"add\",\"path\":\"/metadata/labels/x\",\"value\":\"y\"}]'", "patched");
        let complaint = k.fails("patch networks.networking.openkcm.dev shop -p '{\"spec\":{}}'");
        assert!(complaint.contains("415") || complaint.contains("media type"), "{complaint}");
        k.has(
            "patch networks.networking.openkcm.dev shop --type merge --subresource status -p '{\"status\":{\"state\":\"Available\"}}'",
            "patched",
        );
        k.has("wait networks.networking.openkcm.dev/shop --for=jsonpath='{.status.state}'=Available --timeout=20s", "condition met");
        k.has("describe networks.networking.openkcm.dev shop", "Available");
        let mut edit = k.command("edit networks.networking.openkcm.dev shop");
        edit.env("KUBE_EDITOR", "sed -i s/front/back/");
        let (good, out, err) = shown(edit.output().expect("kubectl runs"));
        assert!(good && out.contains("edited"), "{out}{err}");
        k.has("get networks.networking.openkcm.dev -l tier=back", "shop");
        let current = k.ok("get networks.networking.openkcm.dev shop -o yaml");
        let current = k.file("current.yaml", &current);
        k.has(&format!("replace -f {current}"), "replaced");
        k.has(&format!("replace --force -f {file}"), "replaced");
        k.has("delete networks.networking.openkcm.dev shop", "deleted");
        assert!(k.fails("get networks.networking.openkcm.dev shop").contains("not found"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_in_both_ways() {
    in_shell(|k| {
        let file = k.file("network.yaml", NETWORK);
        k.has(
            &format!("apply --dry-run=server -f {file}"),
            "created (server dry run)",
        );
        assert!(
            k.fails("get networks.networking.openkcm.dev shop")
                .contains("NotFound")
        );
        k.has(&format!("apply -f {file}"), "created");
        k.has(&format!("apply -f {file}"), "unchanged");
        let labelled = k.file("labelled.yaml", &format!("{NETWORK}  labels:\n    a: b\n"));
        assert!(k.fails(&format!("diff -f {labelled}")).contains("a: b"));
        k.has(&format!("apply -f {labelled}"), "configured");
        k.has(&format!("apply -f {file}"), "configured");
        assert!(
            !k.ok("get networks.networking.openkcm.dev shop -o yaml")
                .contains("a: b")
        );
        k.has(
            &format!("apply --server-side -f {file}"),
            "serverside-applied",
        );
        k.has(
            &format!("apply --server-side -f {labelled}"),
            "serverside-applied",
        );
        let other = k.file("other.yaml", &format!("{NETWORK}  labels:\n    a: c\n"));
        let complaint = k.fails(&format!(
            "apply --server-side --field-manager=other -f {other}"
        ));
        assert!(
            complaint.contains("conflict with \"kubectl\"")
                && complaint.contains(".metadata.labels.a"),
            "{complaint}"
        );
        k.has(
            &format!("apply --server-side --field-manager=other --force-conflicts -f {other}"),
            "serverside-applied",
        );
        k.has(
            "get networks.networking.openkcm.dev shop -o yaml --show-managed-fields",
            "manager: other",
        );
        assert!(
            k.fails(&format!(
                "diff --server-side --field-manager=third --force-conflicts -f {labelled}"
            ))
            .contains("a: b")
        );
        let typo = k.file("typo.yaml", &format!("{NETWORK}spec:\n  peeringz: []\n"));
        assert!(
            k.fails(&format!("apply -f {typo}"))
                .contains("unknown field \"spec.peeringz\"")
        );
        k.has(&format!("apply --validate=ignore -f {typo}"), "configured");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_field_is_named() {
    in_shell(|k| {
        let bad = "apiVersion: core.apinet.openkcm.dev/v1alpha1\nkind: NetworkInterface\nmetadata:\n  name: Bad_Name\nspec:\n  \
                   networkRef: {}\n  ips: [nonsense, 10.0.0.1, 10.0.0.2]\n";
        let bad = k.file("bad.yaml", bad);
        let complaint = k.fails(&format!("create -f {bad}"));
        for field in ["metadata.name", "spec.nodeRef", "spec.ips"] {
            assert!(complaint.contains(field), "{field} is not named: {complaint}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_waits_for_finalizers_and_cascades() {
    in_shell(|k| {
        let held = k.file("held.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: held\n  finalizers: [example.com/hold]\n");
        k.ok(&format!("create -f {held}"));
        k.has("delete configmap held --wait=false", "deleted");
        k.has("get configmap held -o jsonpath='{.metadata.deletionGracePeriodSeconds}'", "0");
        k.ok("patch configmap held --type json -p '[{\"op\":\"remove\",\"path\":\"/metadata/finalizers/0\"}]'");
        k.ok("wait configmap/held --for=delete --timeout=20s");
        for (mode, left) in [("background", false), ("foreground", false), ("orphan", true)] {
            k.stdin("create -f -", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: owner\n");
            let uid = k.ok("get configmap owner -o jsonpath='{.metadata.uid}'");
            k.stdin(
                "create -f -",
                &format!(
                    "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: child\n  ownerReferences:\n  - apiVersion: v1\n    kind: ConfigMap\n    \
                     name: owner\n    uid: {uid}\n    blockOwnerDeletion: true\n"
                ),
            );
            k.ok(&format!("delete configmap owner --cascade={mode} --timeout=30s"));
            if left {
                k.has("get configmap child -o name", "child");
                k.ok("delete configmap child");
            } else {
                k.ok("wait configmap/child --for=delete --timeout=30s");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_live_and_die() {
    in_shell(|k| {
        k.stdin(
            "create -f -",
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: tenant\n",
        );
        k.has("get namespaces", "tenant");
        k.has(
            "get ns tenant -o yaml",
            "kubernetes.io/metadata.name: tenant",
        );
        k.stdin("create -n tenant -f -", NETWORK);
        k.ok("delete ns tenant --timeout=30s");
        assert!(k.fails("get ns tenant").contains("NotFound"));
        assert!(
            k.stdin(
                "apply -f -",
                "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: tenant\n"
            )
            .contains("created")
        );
        assert!(
            !k.ok("get networks.networking.openkcm.dev -n tenant")
                .contains("shop")
        );
        assert!(k.fails("delete ns default").contains("Forbidden"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn built_in_kinds_through_generators() {
    in_shell(|k| {
        k.has("create ns made", "created");
        k.has("create configmap c --from-literal=a=b", "created");
        k.has("create secret generic s --from-literal=a=b", "created");
        k.has("create serviceaccount sa", "created");
        k.has("create role r --verb=get --resource=configmaps", "created");
        k.has("create rolebinding rb --role=r --user=jane", "created");
        k.has(
            "create clusterrole cr --verb=get --resource=nodes",
            "created",
        );
        k.has(
            "create clusterrolebinding crb --clusterrole=cr --group=g",
            "created",
        );
        k.has("get configmap c -o jsonpath='{.data.a}'", "b");
        k.has("patch configmap c -p '{\"data\":{\"x\":\"y\"}}'", "patched");
        k.has("auth whoami", "openkcm:admin");
        k.has("auth can-i create networks.networking.openkcm.dev", "yes");
        k.has("auth can-i get configmaps --as jane", "yes");
        assert!(
            k.fails("auth can-i delete configmaps --as jane")
                .contains("no")
        );
        assert!(
            k.fails("get configmaps -n made --as jane")
                .contains("forbidden: User \"jane\" cannot list resource \"configmaps\"")
        );
        k.has("auth can-i --list --as jane", "configmaps");
        assert!(k.run("events").2.contains("No events found"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_prints_every_change() {
    in_shell(|k| {
        let mut watch = k
            .command("get configmaps -w --output-watch-events --request-timeout=8s")
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        k.stdin(
            "create -f -",
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: seen\n",
        );
        k.ok("label configmap seen a=b");
        k.ok("delete configmap seen");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut watch.stdout.take().expect("stdout"), &mut text)
            .expect("output");
        watch.wait().expect("kubectl ends");
        for event in ["ADDED", "MODIFIED", "DELETED"] {
            assert!(
                text.lines()
                    .any(|line| line.contains(event) && line.contains("seen")),
                "{event} is missing:\n{text}"
            );
        }
    })
    .await;
}

/// Every manifest below `examples`, by path.
fn examples() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "yaml") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// As a user would: each file alone on a region that has nothing yet, with the strict validation that kubectl asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_example_applies_as_it_stands_and_a_second_time_changes_nothing() {
    let files = examples();
    assert!(files.len() >= 13, "{files:?}");
    for file in files {
        in_shell(move |k| {
            let path = file.display();
            let first = k.ok(&format!("apply -f {path}"));
            assert!(first.contains("created"), "{path}: {first}");
            let versions = || {
                k.ok(&format!(
                    "get -f {path} --no-headers -o custom-columns=V:.metadata.resourceVersion"
                ))
            };
            let before = versions();
            k.ok(&format!("apply -f {path}"));
            assert_eq!(versions(), before, "{path}");
        })
        .await;
    }
}

/// The commands that the guide shows, in its order. Waiting needs the rest of a region, which is not here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_usage_guide_is_understood() {
    in_shell(|k| {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
        let guide = std::fs::read_to_string(root.join("docs/usage.md")).expect("the guide");
        k.ok(&format!(
            "apply -f {}",
            root.join("examples/guide").display()
        ));
        // The hypervisor that the guide gives up.
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: hv2}\n";
        let pool = "apiVersion: compute.openkcm.dev/v1alpha1\nkind: MachinePool\nmetadata: {name: hv2}\nspec: {providerID: hv2}\n";
        k.stdin("apply -f -", &format!("{node}---\n{pool}"));
        let commands: Vec<_> = guide
            .lines()
            .filter_map(|line| line.strip_prefix("kubectl "))
            .filter(|line| !line.starts_with("wait "))
            .collect();
        assert!(commands.len() >= 20, "{commands:?}");
        for command in commands {
            let examples = root.join("examples").display().to_string();
            k.ok(&command.replace(" examples", &format!(" {examples}")));
        }
    })
    .await;
}
