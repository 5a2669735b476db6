//! A store that is quick enough to measure its clients by.
//!
//! It is longer than 500 lines because the protocols of S3 and of Google share all but their headers here.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    ops::{Bound, Range},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use md5::{Digest, Md5};
use percent_encoding::percent_decode_str;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};

use crate::stores::Kind;

type Reply = Response<Full<Bytes>>;

/// The condition of Google's store for the present generation of an object, with 0 for none.
const IF_GENERATION_MATCH: HeaderName = HeaderName::from_static("x-goog-if-generation-match");
const GENERATION: HeaderName = HeaderName::from_static("x-goog-generation");

/// Objects in memory, for programs that speak the protocol of S3 or the XML API of Google's store. Each
/// request is answered after the same time, however many there are.
///
/// It has one bucket with paths of its name, as disks need: `PUT`, `GET` with a range, `HEAD`,
/// `DELETE` and lists. With S3, `PUT` has the conditions `If-Match` and `If-None-Match`, and many
/// objects are deleted at once. With Google's, `PUT` and `DELETE` have the condition
/// [`x-goog-if-generation-match`][condition], and no other one.
///
/// It verifies no signature, and has no uploads in parts: it answers such requests with 501. Tests of the
/// format of requests use [`ObjectStoreServer`](crate::ObjectStoreServer) instead.
///
/// [condition]: https://cloud.google.com/storage/docs/xml-api/reference-headers#xgoogifgenerationmatch
#[derive(Debug)]
pub struct MemoryStore {
    kind: Kind,
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

/// Counts of requests since [`MemoryStore::reset`].
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Requests by their method; of those with `GET` that list, the name is `LIST`.
    pub requests: BTreeMap<String, u64>,
    /// The bytes of bodies that were sent to the store.
    pub received: u64,
    /// The bytes of bodies that the store sent.
    pub sent: u64,
    /// The most requests that were in flight at once.
    pub most_in_flight: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    kind: Kind,
    objects: BTreeMap<String, Object>,
    /// That of the youngest object, of all.
    generation: u64,
    latency: Duration,
    traffic: Traffic,
    in_flight: u64,
}

#[derive(Clone, Debug)]
struct Object {
    data: Bytes,
    tag: HeaderValue,
    /// It is given when the object is stored.
    generation: u64,
    modified: DateTime<Utc>,
    /// Headers that came with it and are returned with it.
    headers: HeaderMap,
}

/// A request without its body.
struct Asked {
    method: Method,
    /// The object, or nothing for the bucket.
    key: String,
    query: BTreeMap<String, String>,
    headers: HeaderMap,
}

impl MemoryStore {
    /// Serves the protocol of S3 at a free port of 127.0.0.1 until it is dropped.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn s3(latency: Duration) -> Self {
        Self::new(Kind::S3, latency)
    }

    /// The same with the XML API of Google Cloud Storage.
    ///
    /// # Panics
    ///
    /// When there is no free port.
    pub fn gcs(latency: Duration) -> Self {
        Self::new(Kind::Gcs, latency)
    }

    fn new(kind: Kind, latency: Duration) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads can be started");
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = listener.expect("the loopback has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        listener
            .set_nonblocking(true)
            .expect("a listener need not block");
        let state = Mutex::new(State {
            kind,
            objects: BTreeMap::new(),
            generation: 0,
            latency,
            traffic: Traffic::default(),
            in_flight: 0,
        });
        let shared = Arc::new(Shared { state });
        let serving = Arc::clone(&shared);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("this is a runtime with sockets");
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, Arc::clone(&serving)));
                }
            }
        });
        let runtime = Some(runtime);
        Self {
            kind,
            address,
            shared,
            runtime,
        }
    }

    /// Its address.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the time that each later request takes.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.state().latency = latency;
    }

    /// The requests since the last reset.
    pub fn traffic(&self) -> Traffic {
        self.shared.state().traffic.clone()
    }

    /// Counts from zero.
    pub fn reset(&self) {
        self.shared.state().traffic = Traffic::default();
    }

    /// The URI of a prefix of the bucket.
    pub fn uri(&self, prefix: &str) -> String {
        self.kind.uri(prefix)
    }

    /// The variables by which programs find the store, and their credentials.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        self.kind.variables(self.address)
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        // The caller may be a task, which may not wait.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    /// A panic while the lock was held leaves nothing half done here.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    // Without it, it is only slower.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| respond(request, Arc::clone(&shared)));
    // A client that breaks its connection knows that.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Reply, hyper::Error> {
    let (head, body) = request.into_parts();
    let asked = Asked::new(
        &head.method,
        head.uri.path(),
        head.uri.query(),
        head.headers,
    );
    let latency = {
        let mut state = shared.state();
        state.begin(asked.kind());
        state.latency
    };
    // A client that goes away drops this, and then is in flight no more.
    let _counted = InFlight(&shared);
    let body = body.collect().await?.to_bytes();
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let received = body.len() as u64;
    // Not under the lock, which others wait for.
    let object = (asked.method == Method::PUT).then(|| Object::new(body.clone(), &asked.headers));
    let mut state = shared.state();
    let reply = state.answer(&asked, object, &body);
    let sent = hyper::body::Body::size_hint(reply.body()).lower();
    state.traffic.received += received;
    state.traffic.sent += sent;
    Ok(reply)
}

struct InFlight<'a>(&'a Shared);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.state().in_flight -= 1;
    }
}

impl Asked {
    fn new(method: &Method, path: &str, query: Option<&str>, headers: HeaderMap) -> Self {
        let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
        let query = query.unwrap_or_default().as_bytes();
        Self {
            method: method.clone(),
            // The name of the bucket is a part of the keys, so that there are as many as are used.
            key: path.trim_matches('/').to_owned(),
            query: form_urlencoded::parse(query).into_owned().collect(),
            headers,
        }
    }

    /// Whether it is about the bucket, and not one of its objects.
    fn is_of_bucket(&self) -> bool {
        !self.key.contains('/')
    }

    fn kind(&self) -> &str {
        if self.is_of_bucket() && self.method == Method::GET {
            "LIST"
        } else {
            self.method.as_str()
        }
    }

    fn condition(&self, name: HeaderName) -> Option<&HeaderValue> {
        self.headers.get(name)
    }

    /// The range of an object of this length that is asked for, of one or no range: an empty one for
    /// bytes that it does not have.
    fn range(&self, len: usize) -> Option<Range<usize>> {
        let text = self.headers.get(header::RANGE)?.to_str().ok()?;
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        let range = match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => first..last.saturating_add(1).min(len),
            (Ok(first), Err(_)) => first..len,
            (Err(_), Ok(last)) => len.saturating_sub(last)..len,
            (Err(_), Err(_)) => return None,
        };
        Some(if range.start < range.end { range } else { 0..0 })
    }
}

impl Object {
    fn new(data: Bytes, headers: &HeaderMap) -> Self {
        let mut tag = String::from("\"");
        // Some clients expect this, and compare it.
        for byte in Md5::digest(&data) {
            write!(tag, "{byte:02x}").expect("a string takes everything");
        }
        tag.push('"');
        let kept = |name: &HeaderName| {
            ["x-amz-meta-", "x-goog-meta-"]
                .iter()
                .any(|prefix| name.as_str().starts_with(prefix))
                || *name == header::CONTENT_TYPE
                || *name == header::CONTENT_ENCODING
        };
        let headers = headers.iter().filter(|(name, _)| kept(name));
        Self {
            data,
            tag: HeaderValue::from_str(&tag).expect("digits are a header's value"),
            generation: 0,
            modified: SystemTime::now().into(),
            headers: headers
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        }
    }
}

impl State {
    fn begin(&mut self, kind: &str) {
        self.in_flight += 1;
        let traffic = &mut self.traffic;
        *traffic.requests.entry(kind.to_owned()).or_default() += 1;
        traffic.most_in_flight = traffic.most_in_flight.max(self.in_flight);
    }

    fn answer(&mut self, asked: &Asked, object: Option<Object>, body: &[u8]) -> Reply {
        // Uploads in parts, copies, versions, and parts of listings have these.
        let strange = [
            "uploads",
            "uploadId",
            "partNumber",
            "versionId",
            "delimiter",
        ];
        if strange.iter().any(|name| asked.query.contains_key(*name))
            || asked.headers.contains_key("x-amz-copy-source")
        {
            return failure(StatusCode::NOT_IMPLEMENTED, "NotImplemented");
        }
        match (&asked.method, object) {
            (&Method::GET, _) if asked.is_of_bucket() => self.list(asked),
            (&Method::PUT | &Method::HEAD, _) if asked.is_of_bucket() => reply(StatusCode::OK),
            (&Method::POST, _) if asked.query.contains_key("delete") && self.kind != Kind::Gcs => {
                self.delete_many(asked, body)
            }
            (&Method::GET | &Method::HEAD, _) => self.get(asked),
            (&Method::PUT, Some(object)) => self.put(asked, object),
            (&Method::DELETE, _) => self.delete(asked),
            _ => failure(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
        }
    }

    /// The refusal of a request whose condition does not hold.
    fn refusal(&self, asked: &Asked) -> Option<Reply> {
        let there = self.objects.get(&asked.key);
        if self.kind == Kind::Gcs {
            let wanted = asked.condition(IF_GENERATION_MATCH)?;
            let generation = there.map_or(0, |there| there.generation);
            return (*wanted != HeaderValue::from(generation)).then(refused);
        }
        if let Some(wanted) = asked.condition(header::IF_MATCH) {
            match there {
                None => return Some(failure(StatusCode::NOT_FOUND, "NoSuchKey")),
                Some(there) if there.tag != *wanted => return Some(refused()),
                Some(_) => {}
            }
        }
        let created = asked.condition(header::IF_NONE_MATCH).is_some();
        (created && there.is_some()).then(refused)
    }

    fn put(&mut self, asked: &Asked, mut object: Object) -> Reply {
        if let Some(refusal) = self.refusal(asked) {
            return refusal;
        }
        self.generation += 1;
        object.generation = self.generation;
        let mut done = reply(StatusCode::OK);
        self.name_version(&object, done.headers_mut());
        self.objects.insert(asked.key.clone(), object);
        done
    }

    fn delete(&mut self, asked: &Asked) -> Reply {
        if self.kind == Kind::Gcs
            && let Some(refusal) = self.refusal(asked)
        {
            return refusal;
        }
        match self.objects.remove(&asked.key) {
            None if self.kind == Kind::Gcs => failure(StatusCode::NOT_FOUND, "NoSuchKey"),
            _ => reply(StatusCode::NO_CONTENT),
        }
    }

    fn name_version(&self, object: &Object, headers: &mut HeaderMap) {
        headers.insert(header::ETAG, object.tag.clone());
        if self.kind == Kind::Gcs {
            headers.insert(GENERATION, object.generation.into());
        }
    }

    fn get(&self, asked: &Asked) -> Reply {
        let Some(object) = self.objects.get(&asked.key) else {
            return failure(StatusCode::NOT_FOUND, "NoSuchKey");
        };
        if let Some(wanted) = asked.condition(header::IF_MATCH)
            && *wanted != object.tag
        {
            return refused();
        }
        if asked.condition(header::IF_NONE_MATCH) == Some(&object.tag) {
            return reply(StatusCode::NOT_MODIFIED);
        }
        let len = object.data.len();
        let range = asked.range(len);
        let (status, data) = match &range {
            None => (StatusCode::OK, object.data.clone()),
            Some(range) if range.is_empty() => {
                return failure(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
            }
            Some(range) => (
                StatusCode::PARTIAL_CONTENT,
                object.data.slice(range.clone()),
            ),
        };
        let head = asked.method == Method::HEAD;
        let mut found = reply(status);
        let headers = found.headers_mut();
        headers.extend(object.headers.clone());
        self.name_version(object, headers);
        headers.insert(header::CONTENT_LENGTH, data.len().into());
        let mut text = |name, text: String| {
            let value = HeaderValue::from_str(&text).expect("digits are a header's value");
            headers.insert(name, value);
        };
        let modified = object.modified.format("%a, %d %b %Y %H:%M:%S GMT");
        text(header::LAST_MODIFIED, modified.to_string());
        if let Some(range) = range {
            let (first, last) = (range.start, range.end - 1);
            text(header::CONTENT_RANGE, format!("bytes {first}-{last}/{len}"));
        }
        if !head {
            *found.body_mut() = data.into();
        }
        found
    }

    /// Of both versions, which differ by the names of the place to go on from.
    fn list(&self, asked: &Asked) -> Reply {
        let text = |name: &str| asked.query.get(name).map_or("", String::as_str);
        let most = text("max-keys").parse().unwrap_or(1000).min(1000);
        let bucket = format!("{}/", asked.key);
        let prefix = format!("{bucket}{}", text("prefix"));
        let after = ["continuation-token", "start-after", "marker"];
        let after = after.into_iter().map(text).find(|text| !text.is_empty());
        let after = after.map_or_else(String::new, |after| format!("{bucket}{after}"));
        let mut found = self
            .objects
            .range::<str, _>((Bound::Excluded(after.as_str()), Bound::Unbounded))
            .skip_while(|(key, _)| **key < prefix)
            .take_while(|(key, _)| key.starts_with(&prefix));
        let mut contents = String::new();
        let (mut count, mut last) = (0, "");
        for (key, object) in found.by_ref().take(most) {
            last = &key[bucket.len()..];
            count += 1;
            write!(
                contents,
                "<Contents><Key>{last}</Key><LastModified>{}</LastModified><ETag>{}</ETag>\
                 <Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>",
                object.modified.format("%Y-%m-%dT%H:%M:%S%.3fZ"),
                object.tag.to_str().unwrap_or_default(),
                object.data.len(),
            )
            .expect("a string takes everything");
        }
        let more = found.next().is_some();
        let (name, prefix) = (&asked.key, text("prefix"));
        let next = if more {
            format!(
                "<NextContinuationToken>{last}</NextContinuationToken><NextMarker>{last}</NextMarker>"
            )
        } else {
            String::new()
        };
        xml(
            StatusCode::OK,
            &format!(
                "<ListBucketResult><Name>{name}</Name><Prefix>{prefix}</Prefix>\
                 <KeyCount>{count}</KeyCount><MaxKeys>{most}</MaxKeys>\
                 <IsTruncated>{more}</IsTruncated>{contents}{next}</ListBucketResult>"
            ),
        )
    }

    fn delete_many(&mut self, asked: &Asked, body: &[u8]) -> Reply {
        let body = String::from_utf8_lossy(body);
        let mut deleted = String::new();
        for part in body.split("<Key>").skip(1) {
            let key = part.split('<').next().unwrap_or_default();
            self.objects.remove(&format!("{}/{key}", asked.key));
            write!(deleted, "<Deleted><Key>{key}</Key></Deleted>")
                .expect("a string takes everything");
        }
        let deleted = format!("<DeleteResult>{deleted}</DeleteResult>");
        xml(StatusCode::OK, &deleted)
    }
}

fn reply(status: StatusCode) -> Reply {
    let mut reply = Reply::default();
    *reply.status_mut() = status;
    reply
}

fn refused() -> Reply {
    failure(StatusCode::PRECONDITION_FAILED, "PreconditionFailed")
}

fn failure(status: StatusCode, code: &str) -> Reply {
    let text = format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>");
    xml(status, &text)
}

fn xml(status: StatusCode, text: &str) -> Reply {
    let mut reply = reply(status);
    let kind = HeaderValue::from_static("application/xml");
    reply.headers_mut().insert(header::CONTENT_TYPE, kind);
    *reply.body_mut() = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{text}").into();
    reply
}
