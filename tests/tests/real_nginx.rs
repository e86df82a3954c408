//! nginx behind the agent, and in front of the proxy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use mesh_tests::binary::free_port;
use mesh_tests::curl::{curl, curled, download, upload};
use mesh_tests::installation::{Installation, Site};
use mesh_tests::programs::{Daemon, Sha256, command, run};
use mesh_tests::{Result, web};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than the windows and buffers on the way, and odd.
const BIG: u64 = (256 << 20) + 12_345;

/// An nginx with its own files, in the foreground.
struct Nginx {
    dir: TempDir,
    addr: SocketAddr,
    _daemon: Daemon,
}

impl Nginx {
    /// Starts it on a free port with the lines of a `server` that make it what it is; `listen` is
    /// appended to the address. `{root}` is its directory of files.
    fn start(listen: &str, http: &str, server: &str) -> Result<Self> {
        Self::start_in(
            tempfile::Builder::new().prefix("mesh-nginx-").tempdir()?,
            listen,
            http,
            server,
        )
    }

    fn start_in(dir: TempDir, listen: &str, http: &str, server: &str) -> Result<Self> {
        let root = dir.path().join("files");
        fs::create_dir_all(&root)?;
        let addr = free_port()?;
        let base = dir.path().display();
        let root_user = run(command("id")?.arg("-u"))?.must()?.text().trim() == "0";
        // Workers that stay root can read the directory, which is private.
        let user = if root_user { "user root;\n" } else { "" };
        let config = format!(
            "{user}daemon off;\nworker_processes 1;\npid {base}/nginx.pid;\nerror_log stderr warn;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n\
             types {{ text/plain txt; text/html html; }}\n\
             default_type application/octet-stream;\n\
             access_log off;\nsendfile on;\nserver_tokens off;\n\
             client_body_temp_path {base}/body;\nproxy_temp_path {base}/proxy;\n\
             fastcgi_temp_path {base}/fastcgi;\nuwsgi_temp_path {base}/uwsgi;\n\
             scgi_temp_path {base}/scgi;\n{http}\n\
             server {{\nlisten {addr}{listen};\nroot {root};\n{server}\n}}\n}}\n",
            root = root.display(),
        );
        let file = dir.path().join("nginx.conf");
        fs::write(&file, config)?;
        let mut nginx = command("nginx")?;
        nginx
            .arg("-e")
            .arg("stderr")
            .arg("-p")
            .arg(dir.path())
            .arg("-c")
            .arg(&file);
        let daemon = Daemon::start(nginx, addr)?;
        Ok(Self {
            dir,
            addr,
            _daemon: daemon,
        })
    }

    /// Puts a file where it is served.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.dir.path().join("files").join(name);
        fs::write(&path, bytes)?;
        Ok(path)
    }

    /// Puts a file of `bytes` of the pattern where it is served.
    fn write_pattern(&self, name: &str, bytes: u64) -> Result {
        let mut file = fs::File::create(self.dir.path().join("files").join(name))?;
        web::pieces(bytes).try_for_each(|piece| std::io::Write::write_all(&mut file, &piece))?;
        Ok(())
    }

    fn rule(&self) -> String {
        self.addr.to_string()
    }
}

/// The digest of what curl writes.
fn digest(args: &[&str]) -> Result<String> {
    Ok(download(args)?.1)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn static_files() -> Result {
    let nginx = Nginx::start(
        "",
        "",
        "location /moved { return 301 /hello.txt; }\nautoindex on;",
    )?;
    nginx.write("hello.txt", b"hello\n")?;
    nginx.write("empty.txt", b"")?;
    nginx.write("a file with spaces & more.txt", b"odd\n")?;
    let mesh = Installation::http(&[nginx.rule()])?;
    let url = |path: &str| mesh.url(nginx.addr, path);

    assert_eq!(curled(&[&url("/hello.txt")?])?, "hello\n");
    assert_eq!(curled(&[&url("/empty.txt")?])?, "");
    assert_eq!(
        curled(&[&url("/a%20file%20with%20spaces%20%26%20more.txt")?])?,
        "odd\n"
    );
    assert!(curled(&[&url("/")?])?.contains("hello.txt"));

    let shape = [
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %header{content-type} %header{etag}",
    ];
    let told = curled(&[&shape[..], &[&url("/hello.txt")?]].concat())?;
    let etag = told
        .strip_prefix("200 text/plain ")
        .context(told.clone())?
        .to_owned();
    // Asked for again.
    let condition = format!("If-None-Match: {etag}");
    let told = curled(&[&shape[..], &["-H", &condition, &url("/hello.txt")?]].concat())?;
    assert_eq!(told, format!("304  {etag}"));
    let code = |path: &str| curled(&["-o", "/dev/null", "-w", "%{http_code}", &url(path)?]);
    assert_eq!(code("/absent.txt")?, "404");
    assert_eq!(code("/moved")?, "301");
    // A status of the target's is not one of the mesh's.
    let shape = ["-o", "/dev/null", "-w", "[%header{x-mesh-error}]"];
    assert_eq!(
        curled(&[&shape[..], &[&url("/absent.txt")?]].concat())?,
        "[]"
    );
    let head = curled(&["-I", &url("/hello.txt")?])?.to_lowercase();
    assert!(head.contains("content-length: 6\r\n"), "{head}");
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_files_and_ranges() -> Result {
    let nginx = Nginx::start("", "", "")?;
    nginx.write_pattern("big", BIG)?;
    let mesh = Installation::http(&[nginx.rule()])?;
    let url = mesh.url(nginx.addr, "/big")?;
    assert_eq!(digest(&[&url])?, web::digest(BIG));

    // A download that was cut is resumed from where it was.
    let file = mesh.dir().join("big");
    let first = 100_000_000;
    let args = [
        "-o",
        text(&file)?,
        "-w",
        "%{http_code} %header{content-range}",
    ];
    let range = ["-r", &format!("0-{}", first - 1)];
    let told = curled(&[&args[..], &range, &[&url]].concat())?;
    assert_eq!(told, format!("206 bytes 0-{}/{BIG}", first - 1));
    assert_eq!(fs::metadata(&file)?.len(), first);
    let told = curled(&[&args[..], &["-C", "-", &url]].concat())?;
    assert_eq!(told, format!("206 bytes {first}-{}/{BIG}", BIG - 1));
    assert_eq!(
        digest(&[&format!("file://{}", text(&file)?)])?,
        web::digest(BIG)
    );
    // Some more ranges.
    let whole = fs::read(&file)?;
    let parts = run(&mut curl(["-r", "1000-1999", &url])?)?.must()?.stdout;
    assert!(parts == whole[1000..2000], "a range in the middle");
    let parts = run(&mut curl(["-r", "-777", &url])?)?.must()?.stdout;
    assert!(parts == whole[whole.len() - 777..], "the end");
    let told = curled(&["-r", "0-1,5-6", &url])?;
    assert_eq!(told.matches("Content-Range: ").count(), 2, "{told}");
    let beyond = [
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-r",
        &format!("{BIG}-"),
    ];
    assert_eq!(curled(&[&beyond[..], &[&url]].concat())?, "416");
    mesh.little_memory()?;
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed() -> Result {
    let http = "gzip on; gzip_min_length 100; gzip_types text/plain; gzip_proxied any;";
    let nginx = Nginx::start("", http, "")?;
    let content = "a line that repeats, as text does\n".repeat(100_000);
    nginx.write("text.txt", content.as_bytes())?;
    let mesh = Installation::http(&[nginx.rule()])?;
    let url = mesh.url(nginx.addr, "/text.txt")?;
    let head = mesh.dir().join("head");
    let args = ["--compressed", "-D", text(&head)?, &url];
    assert_eq!(digest(&args)?, Sha256::of(content.as_bytes()));
    let head = fs::read_to_string(&head)?.to_lowercase();
    assert!(head.contains("content-encoding: gzip\r\n"), "{head}");
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    // As it travelled, and uncompressed for who does not ask.
    let shape = ["-o", "/dev/null", "-w", "%{size_download}"];
    let travelled = ["-H", "Accept-Encoding: gzip", &url];
    let size: usize = curled(&[&shape[..], &travelled].concat())?.parse()?;
    assert!(size < content.len() / 10, "{size}");
    assert_eq!(
        curled(&[&shape[..], &[&url]].concat())?,
        content.len().to_string()
    );
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_headers() -> Result {
    // nginx takes no longer ones in its config.
    let long = "x".repeat(3500);
    let http = "large_client_header_buffers 8 32k;";
    let server = format!(
        "{}location / {{ return 200 $http_x_long; }}",
        (1..=8)
            .map(|number| format!("add_header X-Long-{number} {long};\n"))
            .collect::<String>()
    );
    let nginx = Nginx::start("", http, &server)?;
    let mesh = Installation::http(&[nginx.rule()])?;
    let url = mesh.url(nginx.addr, "/")?;
    for length in [100, 8_000, 30_000] {
        let value = "v".repeat(length);
        assert_eq!(
            curled(&["-H", &format!("X-Long: {value}"), &url])?,
            value,
            "{length}"
        );
    }
    let head = curled(&["-I", &url])?.to_lowercase();
    for number in 1..=8 {
        assert!(
            head.contains(&format!("x-long-{number}: {long}\r\n")),
            "header {number}"
        );
    }
    // What is over the proxy's own limit is refused by it, with a status.
    let shape = ["-o", "/dev/null", "-w", "%{http_code}"];
    let too_long = format!("X-Long: {}", "v".repeat(100_000));
    assert_eq!(
        curled(&[&shape[..], &["-H", &too_long, &url]].concat())?,
        "431"
    );
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_behind_the_agent() -> Result {
    let web = web::start().await?;
    let http = format!("upstream backend {{ server {}; keepalive 4; }}", web.addr);
    let server = "proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
                  client_max_body_size 0; proxy_request_buffering off; proxy_buffering off;\n\
                  location / { proxy_pass http://backend; }";
    let nginx = Nginx::start("", &http, server)?;
    let mesh = Installation::http(&[nginx.rule()])?;
    let size = 32 << 20;
    let pattern = web::digest(size);
    let chunked = mesh.url(nginx.addr, &format!("/chunked/{size}"))?;
    assert_eq!(digest(&[&chunked])?, pattern);
    let sink = mesh.url(nginx.addr, "/sink")?;
    let (told, _) = upload(&["-T", "-", &sink], size)?;
    assert_eq!(told.text(), format!("{size} {pattern}\n"));
    // Twenty requests, and connections that are kept all the way.
    let before = web.accepted();
    let url = mesh.url(nginx.addr, "/[1-20]")?;
    let told = curled(&[
        "-o",
        "/dev/null",
        "-w",
        "%{num_connects} %{http_code}\\n",
        &url,
    ])?;
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(lines.len(), 20, "{told}");
    assert_eq!(lines[0], "1 200");
    assert!(lines[1..].iter().all(|line| *line == "0 200"), "{told}");
    assert!(
        web.accepted() <= before + 1,
        "{} then {before}",
        web.accepted()
    );
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_before_the_proxy() -> Result {
    let web = web::start().await?;
    let mesh = Installation::http(&[web.rule()])?;
    let ingress = mesh.ingress(0)?;
    let http = format!("upstream mesh {{ server {ingress}; keepalive 4; }}");
    // As in a public site of its own: the path of the mesh is not seen there.
    let server = format!(
        "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host localhost;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; client_max_body_size 0;\n\
         location / {{ proxy_pass http://mesh/client/a1/http/{}/; }}",
        web.addr
    );
    let nginx = Nginx::start("", &http, &server)?;
    let base = format!("http://{}", nginx.addr);
    let told: Value = serde_json::from_str(&curled(&[&format!("{base}/echo?q=1")])?)?;
    assert_eq!(told["path"], "/echo?q=1");
    assert_eq!(
        told["headers"]["x-forwarded-for"][0], "127.0.0.1, 127.0.0.1",
        "{told}"
    );
    let size = 64 << 20;
    assert_eq!(
        digest(&[&format!("{base}/source/{size}")])?,
        web::digest(size)
    );
    let (told, _) = upload(&["-T", "-", &format!("{base}/sink")], size)?;
    assert_eq!(told.text(), format!("{size} {}\n", web::digest(size)));
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_with_an_authority_of_its_own() -> Result {
    let dir = tempfile::Builder::new().prefix("mesh-nginx-").tempdir()?;
    let openssl =
        |args: &[&str]| run(command("openssl")?.current_dir(dir.path()).args(args))?.must();
    let ec = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ];
    for (name, subject) in [("ca", "/CN=authority"), ("other", "/CN=another authority")] {
        let files = [
            "-keyout",
            &format!("{name}.key"),
            "-out",
            &format!("{name}.pem"),
        ];
        let kind = [
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
            "-subj",
            subject,
        ];
        openssl(&[&["req", "-x509"], &ec[..], &files, &kind].concat())?;
    }
    let names = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n";
    fs::write(dir.path().join("names"), names)?;
    let request = ["-keyout", "web.key", "-out", "web.csr", "-subj", "/CN=web"];
    openssl(&[&["req"], &ec[..5], &request].concat())?;
    openssl(&[
        "x509",
        "-req",
        "-in",
        "web.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-out",
        "web.pem",
        "-days",
        "2",
        "-extfile",
        "names",
    ])?;
    let certificates = [dir.path().join("ca.pem"), dir.path().join("other.pem")];
    let server = format!(
        "ssl_certificate {0}/web.pem;\nssl_certificate_key {0}/web.key;",
        dir.path().display()
    );
    let [ca, other] =
        certificates.map(|path| format!("kind = \"http\"\nupstream_ca = \"{}\"", path.display()));
    let nginx = Nginx::start_in(dir, " ssl http2", "", &server)?;
    nginx.write("hello.txt", b"hello\n")?;
    nginx.write_pattern("big", 64 << 20)?;

    let port = nginx.addr.port();
    // The name `localhost` may stand for either family; the target listens on one.
    let allow = [nginx.rule(), format!("localhost:{port}")];
    let ingresses = [ca, other, "kind = \"http\"".into()];
    let mesh = Site::new()?.start(&ingresses, &allow)?;
    let url = |ingress: usize, host: &str, path: &str| {
        let listen = mesh.ingress(ingress)?;
        anyhow::Ok(format!(
            "http://{listen}/client/a1/https/{host}:{port}{path}"
        ))
    };
    assert_eq!(curled(&[&url(0, "127.0.0.1", "/hello.txt")?])?, "hello\n");
    assert_eq!(curled(&[&url(0, "localhost", "/hello.txt")?])?, "hello\n");
    assert_eq!(
        digest(&[&url(0, "localhost", "/big")?])?,
        web::digest(64 << 20)
    );
    // Another authority, and the system's: the certificate is good for neither.
    for ingress in [1, 2] {
        let shape = ["-w", "%{http_code} %header{x-mesh-error}"];
        let told = curled(&[&shape[..], &[&url(ingress, "127.0.0.1", "/hello.txt")?]].concat())?;
        assert!(told.ends_with("502 unreachable"), "{told}");
        assert!(told.to_lowercase().contains("certificate"), "{told}");
    }
    // Plain HTTP at the port of TLS is nginx's to refuse.
    let plain = mesh.url(nginx.addr, "/hello.txt")?;
    assert_eq!(
        curled(&["-o", "/dev/null", "-w", "%{http_code}", &plain])?,
        "400"
    );
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_holds_nobody_up() -> Result {
    let nginx = Nginx::start("", "", "")?;
    nginx.write_pattern("big", BIG)?;
    nginx.write("hello.txt", b"hello\n")?;
    let mesh = Installation::http(&[nginx.rule()])?;
    let big = mesh.url(nginx.addr, "/big")?;
    // One that reads its head and then nothing more, until the others are served.
    let mut slow = curl(["-i", &big])?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = slow.stdout.take().context("no standard output")?;
    let mut start = [0; 1000];
    stdout.read_exact(&mut start)?;
    let small = mesh.url(nginx.addr, "/hello.txt?[1-50]")?;
    assert_eq!(curled(&[&small])?, "hello\n".repeat(50));
    assert_eq!(digest(&[&big])?, web::digest(BIG));
    mesh.little_memory()?;
    // And it gets all, when it reads again.
    let head_end = start
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .context("no head")?
        + 4;
    let mut sha256 = Sha256::default();
    sha256.update(&start[head_end..]);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stdout.read(&mut buffer)? {
            0 => break,
            read => sha256.update(&buffer[..read]),
        }
    }
    assert!(slow.wait()?.success());
    assert_eq!(sha256.finish(), web::digest(BIG));
    mesh.stop()
}
