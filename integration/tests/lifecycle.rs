//! From manifests to pods and back: sources, restarts, deadlines, signals, namespaces, terminals.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use berth_integration::{
    Machine, eventually, fixtures,
    help::{agent, config, container, lines, log, manifest, name, place, sh},
    terminal::Terminal,
};
use serde_json::{Value, json};

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn one_file_can_hold_many_pods_in_every_notation() {
    let place = place();
    let agent = agent(&place, &[]);
    let pod = |name: &str| manifest(name, "sleep 1000");
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [pod("list-a"), pod("list-b")] });
    agent.apply("list.json", &list.to_string());
    let pods = json!({ "apiVersion": "v1", "kind": "PodList", "items": [pod("podlist-a")] });
    agent.apply("podlist.json", &pods.to_string());
    let yaml = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
             containers:\n  - name: app\n    image: busybox:1\n    command: [sleep, '1000']\n"
        )
    };
    agent.apply("several.yaml", &format!("# comment\n---\n{}---\n{}...\n", yaml("yaml-a"), yaml("yaml-b")));
    for name in ["list-a", "list-b", "podlist-a", "yaml-a", "yaml-b"] {
        agent.ready(name);
    }
    let kept = agent.ready("yaml-b")["metadata"]["uid"].clone();
    agent.apply("several.yaml", &yaml("yaml-b"));
    agent.gone("yaml-a");
    let after = agent.ready("yaml-b");
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    // Its UID comes from the manifest and the file, not from the place in the file.
    assert_eq!(after["metadata"]["uid"], kept);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn pods_come_from_a_url_and_follow_it() {
    let place = place();
    let content: Arc<Mutex<String>> = Arc::new(Mutex::new(fixtures::pod("remote", "sleep 1000")));
    let listener = place.inside(|| TcpListener::bind("127.0.0.1:9999").expect("listen"));
    let served = content.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let asked = String::from_utf8_lossy(&request[..length]).to_ascii_lowercase();
            let body = served.lock().expect("the content").clone();
            let status = if asked.contains("x-token: abc") { "200 OK" } else { "403 Forbidden" };
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
                .ok();
        }
    });
    let file = config(&place, "httpCheckFrequency: 300ms", "");
    let more =
        ["--config", &file, "--manifest-url", "http://127.0.0.1:9999/pods", "--manifest-url-header", "X-Token:abc"];
    let agent = agent(&place, &more);
    let first = agent.ready("remote");
    assert_eq!(first["metadata"]["annotations"]["kubernetes.io/config.source"], "http");
    // Nonsense in between changes nothing.
    *content.lock().expect("the content") = "{ not a pod".to_owned();
    eventually("the nonsense is reported", Duration::from_secs(10), || {
        agent.ok(&["pods", "--problems"]).contains("127.0.0.1:9999").then_some(())
    });
    assert_eq!(agent.ready("remote")["metadata"]["uid"], first["metadata"]["uid"]);
    *content.lock().expect("the content") = fixtures::pod("other", "sleep 1000");
    agent.ready("other");
    agent.gone("remote");
    *content.lock().expect("the content") = json!({ "apiVersion": "v1", "kind": "PodList", "items": [] }).to_string();
    agent.gone("other");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_new_generation_waits_until_the_old_one_is_gone() {
    let place = place();
    let agent = agent(&place, &[]);
    let out = place.path("out");
    fs::create_dir(&out).expect("a directory");
    let generation = |name: &str| {
        let script = format!(
            "echo begin {name} >> /out/log; trap 'sleep 1; echo end {name} >> /out/log; exit 0' TERM
            while true; do sleep 0.1; done"
        );
        let mut pod = manifest("web", &script);
        pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
        pod["spec"]["volumes"] = json!([{ "name": "out", "hostPath": { "path": out } }]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "out", "mountPath": "/out" }]);
        pod.to_string()
    };
    agent.apply("web.json", &generation("one"));
    agent.ready("web");
    eventually("the first began", Duration::from_secs(5), || (lines(&out.join("log")).len() == 1).then_some(()));
    agent.apply("web.json", &generation("two"));
    eventually("the second began", Duration::from_secs(15), || (lines(&out.join("log")).len() == 3).then_some(()));
    assert_eq!(lines(&out.join("log")), ["begin one", "end one", "begin two"]);
    agent.ready("web");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_process_that_ignores_term_has_its_grace_and_no_more() {
    let place = place();
    let mut agent = agent(&place, &[]);
    agent.apply("first.json", &fixtures::pod("first", "sleep 1000"));
    agent.ready("first");
    let before = Machine::look(&place);
    agent.apply("deaf.json", &fixtures::pod("deaf", "trap '' TERM; (trap '' TERM; sleep 1000) & sleep 1000"));
    agent.ready("deaf");
    let begun = Instant::now();
    agent.delete("deaf.json");
    agent.gone("deaf");
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(6), "grace of 2 s took {took:?}");
    before.assert_clean(&Machine::look(&place));
    agent.delete("first.json");
    agent.gone("first");
    agent.stop();
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn restart_policies_and_deadlines() {
    let place = place();
    let agent = agent(&place, &[]);
    // An init container that fails twice, under Always: tried again, nothing else starts before.
    let mut pod = manifest("init", "echo main; exec sleep 1000");
    pod["spec"]["volumes"] = json!([{ "name": "out", "emptyDir": {} }]);
    let script = "echo x >> /out/n; [ $(wc -l < /out/n) -ge 2 ]";
    pod["spec"]["initContainers"] = json!([{
        "name": "first", "image": "busybox:1", "command": ["sh", "-c", script],
        "volumeMounts": [{ "name": "out", "mountPath": "/out" }],
    }]);
    agent.apply("init.json", &pod.to_string());
    // OnFailure: again after a failure, not after success.
    let mut pod = manifest("onfailure", "[ -e /out/n ] && exit 0; touch /out/n; exit 5");
    pod["spec"]["restartPolicy"] = json!("OnFailure");
    pod["spec"]["volumes"] = json!([{ "name": "out", "emptyDir": {} }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "out", "mountPath": "/out" }]);
    agent.apply("onfailure.json", &pod.to_string());
    let mut pod = manifest("deadline", "trap 'exit 0' TERM; while true; do sleep 0.1; done");
    pod["spec"]["activeDeadlineSeconds"] = json!(2);
    agent.apply("deadline.json", &pod.to_string());

    let ended = agent.until("onfailure", "succeeded", |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(container(&ended, 0)["restartCount"], 1);
    assert_eq!(container(&ended, 0)["lastState"]["terminated"]["exitCode"], 5);
    let pod = agent.until("deadline", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
    agent.until("deadline", "ended", |pod| container(pod, 0)["state"]["terminated"].is_object());
    let pod = agent.ready("init");
    assert_eq!(pod["status"]["initContainerStatuses"][0]["restartCount"], 1);
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    assert_eq!(log(&agent, "init"), "main\n");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn namespaces_are_shared_as_the_spec_says() {
    let place = place();
    let agent = agent(&place, &[]);
    let two = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut pod = manifest(name, "exec sleep 1001");
        let mut second = pod["spec"]["containers"][0].clone();
        second["name"] = json!("second");
        second["command"] = json!(["sleep", "1002"]);
        pod["spec"]["containers"].as_array_mut().expect("containers").push(second);
        change(&mut pod["spec"]);
        agent.apply(&format!("{name}.json"), &pod.to_string());
        agent.ready(name);
    };
    let host = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).expect("a link").display().to_string();
    let own = |pod: &str, kind: &str| sh(&agent, pod, &format!("readlink /proc/self/ns/{kind}")).trim().to_owned();
    let processes = |pod: &str| sh(&agent, pod, "ps -o args");

    two("own", &|_| ());
    assert!(!processes("own").contains("sleep 1002"), "each container has its own processes");
    for kind in ["ipc", "pid", "uts", "mnt"] {
        assert_ne!(own("own", kind), host(kind), "{kind}");
    }
    let second = agent.ok(&["exec", &name(&agent, "own"), "-c", "second", "--", "readlink", "/proc/self/ns/ipc"]);
    assert_eq!(second.trim(), own("own", "ipc"), "the pod's containers share IPC");

    two("shared", &|spec| spec["shareProcessNamespace"] = json!(true));
    let seen = processes("shared");
    assert!(seen.contains("sleep 1001") && seen.contains("sleep 1002"), "{seen}");
    // Orphans are adopted and reaped by the pod's own first process.
    sh(&agent, "shared", "(sh -c 'sleep 0.1 &' &) ; sleep 0.5; ! ps -o stat | grep -q '^Z'");

    two("hostpid", &|spec| spec["hostPID"] = json!(true));
    assert_eq!(own("hostpid", "pid"), host("pid"));
    two("hostipc", &|spec| spec["hostIPC"] = json!(true));
    assert_eq!(own("hostipc", "ipc"), host("ipc"));
    for pod in ["hostpid", "shared"] {
        agent.delete(&format!("{pod}.json"));
        agent.gone(pod);
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn sysctls_are_set_or_forbidden() {
    let place = place();
    let agent = agent(&place, &[]);
    let mut pod = manifest("safe", "exec sleep 1000");
    pod["spec"]["securityContext"] = json!({ "sysctls": [
        { "name": "net.ipv4.ip_unprivileged_port_start", "value": "80" },
        { "name": "kernel.shm_rmid_forced", "value": "1" },
    ] });
    agent.apply("safe.json", &pod.to_string());
    agent.ready("safe");
    let values = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    assert_eq!(sh(&agent, "safe", values), "80\n1\n");
    let host = fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").expect("the host's value");
    assert_eq!(host, "0\n", "the host's own value is as it was");
    pod["metadata"]["name"] = json!("unsafe");
    pod["spec"]["securityContext"]["sysctls"][0] = json!({ "name": "net.core.somaxconn", "value": "1000" });
    agent.apply("unsafe.json", &pod.to_string());
    let pod = agent.until("unsafe", "rejected", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(pod["status"]["reason"], "SysctlForbidden");
    assert!(pod["status"]["message"].to_string().contains("net.core.somaxconn"), "{:#}", pod["status"]);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn last_words_are_kept() {
    let place = place();
    let agent = agent(&place, &[]);
    let mut last = manifest("file", "echo from the file > /dev/my-words; exit 3");
    last["spec"]["restartPolicy"] = json!("Never");
    last["spec"]["containers"][0]["terminationMessagePath"] = json!("/dev/my-words");
    agent.apply("file.json", &last.to_string());
    let mut fallback = manifest("log", "for i in $(seq 200); do echo line $i; done; exit 4");
    fallback["spec"]["restartPolicy"] = json!("Never");
    fallback["spec"]["containers"][0]["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    agent.apply("log.json", &fallback.to_string());
    let words = |name: &str| {
        let pod = agent.until(name, "failed", |pod| pod["status"]["phase"] == "Failed");
        container(&pod, 0)["state"]["terminated"]["message"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(words("file"), "from the file\n");
    let tail = words("log");
    assert!(tail.contains("line 200") && tail.lines().count() <= 80 && tail.len() <= 2048, "{tail}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn terminals_of_containers_and_of_exec() {
    let place = place();
    let agent = agent(&place, &[]);
    let mut pod = manifest("tty", "tty; stty size; echo done; exec sleep 1000");
    pod["spec"]["containers"][0]["tty"] = json!(true);
    pod["spec"]["containers"][0]["stdin"] = json!(true);
    agent.apply("tty.json", &pod.to_string());
    agent.ready("tty");
    let text = eventually("the log", Duration::from_secs(5), || {
        let text = log(&agent, "tty");
        text.contains("done").then_some(text)
    });
    assert!(text.contains("/dev/") && !text.contains("not a tty"), "{text:?}");

    let full = name(&agent, "tty");
    let mut terminal = Terminal::start(agent.command(&["exec", "-it", &full, "--", "sh"]), 41, 123);
    terminal.write("echo $((40+2)); tty; stty size\n");
    terminal.expect("42", Duration::from_secs(5));
    terminal.expect("/dev/pts/", Duration::from_secs(5));
    terminal.expect("41 123", Duration::from_secs(5));
    terminal.resize(30, 90);
    let begun = Instant::now();
    loop {
        terminal.write("stty size\n");
        if terminal.seen("30 90", Duration::from_millis(300)) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "the new size arrives: {}", terminal.text());
    }
    // ^C ends what runs in the foreground, not the shell.
    terminal.write("sleep 1000\n");
    std::thread::sleep(Duration::from_millis(300));
    terminal.write("\x03");
    terminal.write("echo still-$((1+1))\n");
    terminal.expect("still-2", Duration::from_secs(5));
    terminal.write("exit 7\n");
    assert_eq!(terminal.wait(Duration::from_secs(5)), Some(7), "{}", terminal.text());
}
