//! Client hellos that a machine says to its gateway, with bash alone.

use std::time::Duration;

use tierbox_core::{ExecRequest, Result, Sandbox, SandboxExt};

/// What a gateway says to a hello that it refuses, in hex: a fatal alert, `unrecognized_name`.
pub const REFUSED: &str = "15030300020270";

/// Says hello with this server name, or without one, to what the listed `index.test` leads to. The first bytes of the answer in hex.
pub async fn answer_to(machine: &dyn Sandbox, name: Option<&str>) -> Result<String> {
    // Without a proxy a listed name is the gateway's own address.
    let script = "exec 3<>/dev/tcp/index.test/443 || exit 1; printf '%b' \"$0\" >&3; \
                  timeout 10 head -c 7 <&3 | od -An -v -tx1 | tr -d ' \\n'";
    let hello: String = hello(name).iter().map(|byte| format!("\\x{byte:02x}")).collect();
    let request = ExecRequest::new(["bash", "-c", script, hello.as_str()]).timeout(Duration::from_secs(20));
    Ok(machine.run(request).await?.stdout.text())
}

fn counted(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn hello(name: Option<&str>) -> Vec<u8> {
    let named = |name: &str| {
        let entry = [&[0][..], &counted(name.as_bytes())].concat();
        [&[0, 0][..], &counted(&counted(&entry))].concat()
    };
    let groups = [&[0, 10][..], &counted(&counted(&[0, 29]))].concat();
    let extensions = [name.map(named).unwrap_or_default(), groups].concat();
    let body = [&[3, 3][..], &[42; 32], &[0, 0, 2, 0xc0, 0x2b, 1, 0], &counted(&extensions)].concat();
    let message = [&[1, 0][..], &counted(&body)].concat();
    [&[22, 3, 1][..], &counted(&message)].concat()
}
