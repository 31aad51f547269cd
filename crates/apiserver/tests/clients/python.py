"""The official Python client against our server, unchanged: `python3 python.py KUBECONFIG`.

Typed and dynamic access, every patch type, paging, watches that end and go on, an informer made of list and watch with resync,
optimistic locking, events, leases and the client's own leader election. Prints the name of every step; fails by exception.
"""

import json
import sys
import threading
import time

from kubernetes import client, config, dynamic, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock

GROUP, VERSION, NAMESPACE = "networking.openkcm.dev", "v1alpha1", "default"
PLACE = (GROUP, VERSION, NAMESPACE, "networks")


def until(condition):
    """Waits for what must come true."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def refused(code, call, *args, **kwargs):
    """The call must fail with this HTTP code and a Status document."""
    try:
        call(*args, **kwargs)
    except ApiException as error:
        status = json.loads(error.body)
        assert error.status == code == status["code"], (error.status, status)
        assert status["kind"] == "Status", status
        return status
    raise AssertionError(f"{call} was not refused with {code}")


def network(name, **metadata):
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Network",
        "metadata": {"name": name, **metadata},
        "spec": {},
    }


def version(api):
    assert int(client.VersionApi(api).get_code().minor) >= 32


def discovery(api):
    groups = {group.name for group in client.ApisApi(api).get_api_versions().groups}
    assert GROUP in groups and "events.k8s.io" in groups, groups
    names = {r.name for r in client.CoreV1Api(api).get_api_resources().resources}
    assert {"namespaces", "configmaps", "secrets", "events"} <= names, names


def custom_objects(api):
    custom = client.CustomObjectsApi(api)
    made = custom.create_namespaced_custom_object(*PLACE, network("py-a", labels={"tier": "front"}))
    assert made["metadata"]["uid"]
    refused(409, custom.create_namespaced_custom_object, *PLACE, network("py-a"))
    status = refused(422, custom.create_namespaced_custom_object, *PLACE, network("Bad_Name"))
    assert status["details"]["causes"][0]["field"] == "metadata.name", status
    # The client's default for custom objects is a merge patch.
    changed = custom.patch_namespaced_custom_object(*PLACE, "py-a", {"metadata": {"labels": {"x": "y", "tier": None}}})
    assert changed["metadata"]["labels"] == {"x": "y"}, changed
    changed["metadata"]["annotations"] = {"by": "python"}
    replaced = custom.replace_namespaced_custom_object(*PLACE, "py-a", changed)
    assert replaced["metadata"]["annotations"] == {"by": "python"}
    refused(409, custom.replace_namespaced_custom_object, *PLACE, "py-a", changed)
    for index in range(5):
        custom.create_namespaced_custom_object(*PLACE, network(f"py-page-{index}", labels={"page": "y"}))
    names, token = [], None
    while True:
        page = custom.list_namespaced_custom_object(*PLACE, limit=2, label_selector="page=y", _continue=token or "")
        assert len(page["items"]) <= 2
        names += [item["metadata"]["name"] for item in page["items"]]
        token = page["metadata"].get("continue")
        if not token:
            break
    assert names == [f"py-page-{index}" for index in range(5)], names
    custom.delete_namespaced_custom_object(*PLACE, "py-a", propagation_policy="Background")
    refused(404, custom.get_namespaced_custom_object, *PLACE, "py-a")
    custom.delete_collection_namespaced_custom_object(*PLACE)
    assert custom.list_namespaced_custom_object(*PLACE)["items"] == []


def built_in_kinds(api):
    core = client.CoreV1Api(api)
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name="py")))
    # The default of typed kinds is a strategic merge patch.
    patched = core.patch_namespace("py", {"metadata": {"labels": {"team": "net"}}})
    assert patched.metadata.labels["team"] == "net"
    meta = client.V1ObjectMeta(name="typed", namespace="py")
    made = core.create_namespaced_config_map("py", client.V1ConfigMap(metadata=meta, data={"a": "1"}))
    core.patch_namespaced_config_map("typed", "py", {"data": {"b": "2"}})
    core.patch_namespaced_config_map("typed", "py", [{"op": "remove", "path": "/data/a"}])
    assert core.read_namespaced_config_map("typed", "py").data == {"b": "2"}
    made.data = {"stale": "yes"}
    refused(409, core.replace_namespaced_config_map, "typed", "py", made)
    core.create_namespaced_secret("py", client.V1Secret(metadata=meta, string_data={"k": "v"}))
    assert core.read_namespaced_secret("typed", "py").data == {"k": "dg=="}
    listed = core.list_config_map_for_all_namespaces(field_selector="metadata.name=typed")
    assert len(listed.items) == 1
    core.delete_namespace("py")

    def gone():
        try:
            core.read_namespace("py")
        except ApiException as error:
            assert error.status == 404
            return True
        return False

    until(gone)


def networks(api):
    return dynamic.DynamicClient(api).resources.get(api_version=f"{GROUP}/{VERSION}", kind="Network")


def dynamic_client(api):
    resource = networks(api)
    made = resource.create(body=network("dyn"), namespace=NAMESPACE)
    assert made.metadata.name == "dyn"
    place = {"name": "dyn", "namespace": NAMESPACE}
    labels = {"metadata": {"labels": {"by": "dynamic"}}}
    merged = resource.patch(body=labels, content_type="application/merge-patch+json", **place)
    assert merged.metadata.labels.by == "dynamic"
    operations = [{"op": "replace", "path": "/metadata/labels/by", "value": "json"}]
    patched = resource.patch(body=operations, content_type="application/json-patch+json", **place)
    assert patched.metadata.labels.by == "json"
    # As for custom resources everywhere: no strategic merge.
    strategic = "application/strategic-merge-patch+json"
    refused(415, resource.patch, body=labels, content_type=strategic, **place)
    events = resource.watch(namespace=NAMESPACE, field_selector="metadata.name=dyn", timeout=1)
    assert [event["type"] for event in events] == ["ADDED"]
    resource.delete(**place)


def server_side_apply(api):
    resource = networks(api)

    def apply(manager, labels, force=False):
        # As text: older versions of the client do not encode this media type.
        body = json.dumps(network("applied", labels=labels))
        applied = resource.server_side_apply(
            body=body, name="applied", namespace=NAMESPACE, field_manager=manager, force_conflicts=force or None
        )
        return (applied.to_dict()["metadata"].get("labels") or {})

    apply("one", {"a": "1", "shared": "one"})
    status = refused(409, apply, "two", {"shared": "two"})
    cause = status["details"]["causes"][0]
    assert cause["reason"] == "FieldManagerConflict" and cause["field"] == ".metadata.labels.shared", status
    assert apply("two", {"shared": "two"}, force=True) == {"a": "1", "shared": "two"}
    # What a manager leaves out of its next apply, it gives up.
    assert apply("one", {}) == {"shared": "two"}
    resource.delete(name="applied", namespace=NAMESPACE)


def informer(api):
    """List, watch from there until the server ends the stream, again and again; and a resync by a new list."""
    core = client.CoreV1Api(api)
    names = [f"inf-{index}" for index in range(20)]
    store, log, streams, done = {}, [], [0], threading.Event()

    def run():
        listed = core.list_namespaced_config_map(NAMESPACE, label_selector="informer=y")
        store.update({item.metadata.name: item for item in listed.items})
        version = listed.metadata.resource_version
        while not done.is_set():
            streams[0] += 1
            # One second each: every stream ends by the server's clock, and the next begins where it ended.
            stream = watch.Watch().stream(
                core.list_namespaced_config_map,
                NAMESPACE,
                label_selector="informer=y",
                resource_version=version,
                timeout_seconds=1,
            )
            for event in stream:
                item = event["object"]
                version = item.metadata.resource_version
                log.append((event["type"], item.metadata.name))
                if event["type"] == "DELETED":
                    store.pop(item.metadata.name)
                else:
                    store[item.metadata.name] = item

    thread = threading.Thread(target=run)
    thread.start()
    for name in names:
        meta = client.V1ObjectMeta(name=name, labels={"informer": "y"})
        core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=meta))
        if name == names[9]:
            # By now streams must have ended and begun again.
            until(lambda: streams[0] >= 3)
    # One leaves the selection without being deleted, one goes for good.
    core.patch_namespaced_config_map(names[0], NAMESPACE, {"metadata": {"labels": {"informer": None}}})
    core.delete_namespaced_config_map(names[1], NAMESPACE)
    until(lambda: set(store) == set(names[2:]))
    done.set()
    thread.join()
    listed = core.list_namespaced_config_map(NAMESPACE, label_selector="informer=y")
    assert {i.metadata.name: i.metadata.resource_version for i in listed.items} == {
        name: item.metadata.resource_version for name, item in store.items()
    }, (store.keys(), log)
    assert len(log) == len(set(log)), "an event came twice"
    assert log.count(("DELETED", names[0])) == 1 and log.count(("DELETED", names[1])) == 1, log
    core.delete_collection_namespaced_config_map(NAMESPACE)


def too_old(api):
    core = client.CoreV1Api(api)
    stream = watch.Watch().stream(core.list_namespaced_config_map, NAMESPACE, resource_version="1", timeout_seconds=1)
    try:
        list(stream)
    except ApiException as error:
        assert error.status == 410, error


def events(api):
    core = client.CoreV1Api(api)
    reference = client.V1ObjectReference(kind="Network", name="py-a", namespace=NAMESPACE, uid="1")
    core.create_namespaced_event(
        NAMESPACE,
        client.CoreV1Event(
            metadata=client.V1ObjectMeta(generate_name="py-"),
            involved_object=reference,
            reason="Tested",
            message="by Python",
            type="Normal",
        ),
    )
    listed = core.list_namespaced_event(NAMESPACE, field_selector="involvedObject.name=py-a,reason=Tested")
    assert [event.message for event in listed.items] == ["by Python"]
    newer = client.CustomObjectsApi(api).list_namespaced_custom_object(
        "events.k8s.io", "v1", NAMESPACE, "events", field_selector="regarding.name=py-a"
    )
    assert newer["items"][0]["note"] == "by Python", newer


def leases(api):
    coordination = client.CoordinationV1Api(api)
    spec = client.V1LeaseSpec(holder_identity="a", lease_duration_seconds=15)
    body = client.V1Lease(metadata=client.V1ObjectMeta(name="py-lease"), spec=spec)
    lease = coordination.create_namespaced_lease(NAMESPACE, body)
    other = coordination.read_namespaced_lease("py-lease", NAMESPACE)
    lease.spec.holder_identity, other.spec.holder_identity = "b", "c"
    coordination.replace_namespaced_lease("py-lease", NAMESPACE, lease)
    refused(409, coordination.replace_namespaced_lease, "py-lease", NAMESPACE, other)
    coordination.delete_namespaced_lease("py-lease", NAMESPACE)


def leader_election(api):
    """Two candidates: while the first renews its lease, the second does not lead."""
    core, terms = client.CoreV1Api(api), []

    def candidate(name):
        lock = ConfigMapLock("py-election", NAMESPACE, name)
        settings = electionconfig.Config(
            lock,
            lease_duration=2,
            renew_deadline=1.5,
            retry_period=1,
            onstarted_leading=lambda: terms.append(name),
            onstopped_leading=lambda: terms.append(f"{name} lost"),
        )
        leaderelection.LeaderElection(settings).run()

    def start(name):
        threading.Thread(target=candidate, args=(name,), daemon=True).start()

    def record():
        lock = core.read_namespaced_config_map("py-election", NAMESPACE)
        return json.loads(lock.metadata.annotations["control-plane.alpha.kubernetes.io/leader"])

    start("first")
    until(lambda: terms == ["first"])
    start("second")
    # Longer than the lease lasts: the second has had its chance.
    renewals = set()
    until(lambda: renewals.add(record()["renewTime"]) or len(renewals) >= 4)
    assert terms == ["first"] and record()["holderIdentity"] == "first", (terms, record())


STEPS = [
    version,
    discovery,
    custom_objects,
    built_in_kinds,
    dynamic_client,
    server_side_apply,
    informer,
    too_old,
    events,
    leases,
    leader_election,
]


def main():
    config.load_kube_config(sys.argv[1])
    for step in STEPS:
        started = time.monotonic()
        step(client.ApiClient())
        print(f"{step.__name__} {time.monotonic() - started:.2f}s", flush=True)


if __name__ == "__main__":
    main()
