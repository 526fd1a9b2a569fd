//! What passes through the bucket: each object has one key, lives as short as it can, and is removed on every path.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use bytes::Bytes;
use tierbox_core::{Error, ErrorKind, Result};
use tokio::sync::Notify;

use crate::BACKEND;
use crate::aws::Aws;
use crate::call::{again, shown, told};

/// How long a presigned address works.
const SHORT: Duration = Duration::from_secs(15 * 60);

/// The objects of one environment.
#[derive(Clone)]
pub(crate) struct Objects {
    aws: Arc<Aws>,
    bucket: String,
    /// Ends with a slash.
    prefix: String,
    open: Arc<Open>,
}

/// How many objects may exist.
#[derive(Default)]
struct Open {
    count: AtomicUsize,
    changed: Notify,
}

/// An object that may exist. It is removed when this is dropped.
pub(crate) struct Object {
    objects: Objects,
    key: String,
}

impl Objects {
    /// Objects below a prefix that ends with a slash, from [`prefix_of`].
    pub(crate) fn at(aws: Arc<Aws>, bucket: &str, prefix: &str) -> Self {
        Self { aws, bucket: bucket.to_owned(), prefix: prefix.to_owned(), open: Arc::default() }
    }

    /// A key that nobody has used.
    pub(crate) fn fresh(&self) -> Result<Object> {
        let name = random(12)?;
        self.open.count.fetch_add(1, Ordering::SeqCst);
        Ok(Object { objects: self.clone(), key: format!("{}{name}", self.prefix) })
    }

    /// An object with these bytes.
    pub(crate) async fn put(&self, bytes: Bytes) -> Result<Object> {
        let object = self.fresh()?;
        let put = || {
            let body = ByteStream::from(bytes.clone());
            self.aws.s3.put_object().bucket(&self.bucket).key(&object.key).body(body).send()
        };
        again("send to the machine", "s3:PutObject", put).await?;
        Ok(object)
    }

    /// Waits until what was dropped is removed, for a while.
    pub(crate) async fn settled(&self) {
        let settled = async {
            loop {
                let changed = self.open.changed.notified();
                if self.open.count.load(Ordering::SeqCst) == 0 {
                    return;
                }
                changed.await;
            }
        };
        // What is left then goes with the prefix.
        let _ = tokio::time::timeout(Duration::from_secs(20), settled).await;
    }
}

/// Where an environment's objects are.
pub(crate) fn prefix_of(prefix: &str, environment: &str) -> String {
    match prefix.trim_matches('/') {
        "" => format!("{environment}/"),
        prefix => format!("{prefix}/{environment}/"),
    }
}

/// Hexadecimal digits that nobody can guess.
pub(crate) fn random(bytes: usize) -> Result<String> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random)
        .map_err(|error| Error::new(ErrorKind::Io, "make a name", error.to_string()).with_backend(BACKEND))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Object {
    /// An address at which whoever has it may read the object for a while.
    pub(crate) async fn readable(&self) -> Result<String> {
        let request = self.objects.aws.s3.get_object().bucket(&self.objects.bucket).key(&self.key);
        let signed = request.presigned(lifetime()?).await;
        signed.map(|signed| signed.uri().to_owned()).map_err(|error| told("sign an address", "s3:GetObject", &error))
    }

    /// An address at which whoever has it may write the object for a while.
    pub(crate) async fn writable(&self) -> Result<String> {
        let request = self.objects.aws.s3.put_object().bucket(&self.objects.bucket).key(&self.key);
        let signed = request.presigned(lifetime()?).await;
        signed.map(|signed| signed.uri().to_owned()).map_err(|error| told("sign an address", "s3:PutObject", &error))
    }

    /// Its bytes, at most so many.
    pub(crate) async fn get(&self, most: usize) -> Result<Bytes> {
        const TRIED: &str = "fetch from the machine";
        let lost = |error: String| Error::new(ErrorKind::Lost, TRIED, error).with_backend(BACKEND);
        let mut last = lost("no bytes came".to_owned());
        for _ in 0..4 {
            let request = || self.objects.aws.s3.get_object().bucket(&self.objects.bucket).key(&self.key).send();
            let answer = again(TRIED, "s3:GetObject", request).await?;
            let length = answer.content_length.and_then(|length| usize::try_from(length).ok());
            if length.is_none_or(|length| length > most) {
                return Err(Error::new(ErrorKind::Protocol, TRIED, "the object is longer than was told").with_backend(BACKEND));
            }
            match answer.body.collect().await {
                Ok(bytes) => return Ok(bytes.into_bytes()),
                Err(error) => last = lost(error.to_string()),
            }
        }
        Err(last)
    }
}

fn lifetime() -> Result<PresigningConfig> {
    PresigningConfig::expires_in(SHORT).map_err(|error| Error::new(ErrorKind::Internal, "sign an address", error.to_string()))
}

impl Drop for Object {
    fn drop(&mut self) {
        let (objects, key) = (self.objects.clone(), std::mem::take(&mut self.key));
        let Ok(driver) = tierbox_guest::driver::handle() else { return };
        driver.spawn(async move {
            let remove = || objects.aws.s3.delete_object().bucket(&objects.bucket).key(&key).send();
            if let Err(error) = again("remove object", "s3:DeleteObject", remove).await {
                tracing::warn!(target: "tierbox::ec2", key, "an object is left until the environment ends: {}", error.message());
            }
            objects.open.count.fetch_sub(1, Ordering::SeqCst);
            objects.open.changed.notify_waiters();
        });
    }
}

/// Removes all objects below a prefix, by pages. Returns how many.
pub(crate) async fn sweep(aws: &Aws, bucket: &str, prefix: &str) -> Result<usize> {
    let mut removed = 0;
    loop {
        let list = || aws.s3.list_objects_v2().bucket(bucket).prefix(prefix).send();
        let page = again("list objects", "s3:ListObjectsV2", list).await?;
        let keys: Vec<String> = page.contents.unwrap_or_default().into_iter().filter_map(|object| object.key).collect();
        if keys.is_empty() {
            return Ok(removed);
        }
        remove_all(aws, bucket, &keys).await?;
        removed += keys.len();
    }
}

/// Removes objects, at most a thousand, by one call.
async fn remove_all(aws: &Aws, bucket: &str, keys: &[String]) -> Result<()> {
    const TRIED: &str = "remove objects";
    let odd = |error: aws_sdk_s3::error::BuildError| Error::new(ErrorKind::Internal, TRIED, error.to_string());
    let named: std::result::Result<Vec<_>, _> = keys.iter().map(|key| ObjectIdentifier::builder().key(key).build()).collect();
    let all = Delete::builder().set_objects(Some(named.map_err(odd)?)).quiet(true).build().map_err(odd)?;
    let remove = || aws.s3.delete_objects().bucket(bucket).delete(all.clone()).send();
    let failed = again(TRIED, "s3:DeleteObjects", remove).await?.errors.unwrap_or_default();
    let Some(first) = failed.first() else { return Ok(()) };
    let said = [first.key(), first.code(), first.message()].map(Option::unwrap_or_default).join(" ");
    let message = format!("{} objects of {bucket} could not be removed: {}", failed.len(), shown(&said));
    Err(Error::new(ErrorKind::HostUnable, TRIED, message).with_backend(BACKEND))
}
