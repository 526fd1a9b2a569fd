//! The way to AWS: who asks, where, and with how many calls at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_ec2::config::retry::RetryConfig;
use aws_sdk_ec2::config::timeout::TimeoutConfig;
use aws_sdk_ec2::config::{Credentials, Region};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use serde::{Deserialize, Serialize};
use tierbox_core::{Error, ErrorKind, Result};
use tokio::sync::OnceCell;

use crate::BACKEND;
use crate::control::Control;
use crate::poll::Poller;
use crate::settings::{Settings, invalid};

/// Where AWS is and who asks, as a lease remembers it: no secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Account {
    /// The region.
    pub(crate) region: Option<String>,
    /// The profile of AWS's own files.
    pub(crate) profile: Option<String>,
    /// Where the API is, if not at Amazon's own addresses.
    pub(crate) endpoint: Option<String>,
    /// The access key of a profile that has keys, to tell one account from another; never the secret.
    pub(crate) key: Option<String>,
}

impl Account {
    fn of(settings: &Settings) -> Self {
        Self {
            region: settings.region.clone(),
            profile: settings.profile.clone(),
            endpoint: settings.endpoint_url.clone(),
            key: settings.access_key_id.clone(),
        }
    }
}

/// The clients for one account and region. Whoever asks for the same shares them, and their budget.
pub(crate) struct Aws {
    pub(crate) ec2: aws_sdk_ec2::Client,
    pub(crate) ssm: aws_sdk_ssm::Client,
    pub(crate) s3: aws_sdk_s3::Client,
    pub(crate) poller: Poller,
    /// Who asks, for calls that no client makes.
    pub(crate) credentials: Option<SharedCredentialsProvider>,
    pub(crate) region: String,
    /// As it was asked for, with what AWS's own configuration said of region and endpoint.
    pub(crate) account: Account,
    /// The number of the account; asked for once.
    pub(crate) owner: OnceCell<Option<String>>,
}

impl std::fmt::Debug for Aws {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Aws").field("region", &self.region).finish_non_exhaustive()
    }
}

/// Kept for the life of the process: keys of a profile are nowhere else when its environments are removed.
static KNOWN: Mutex<Option<HashMap<Account, Arc<Aws>>>> = Mutex::new(None);

impl Aws {
    /// The clients that settings ask for.
    ///
    /// # Errors
    /// `InvalidProfile` where no region is known.
    pub(crate) async fn of(settings: &Settings) -> Result<Arc<Self>> {
        Self::with(Account::of(settings), keys(settings)).await
    }

    /// The clients of an account that a lease remembers. Keys that were in the profile are not in the lease: they must be in the
    /// environment, or the process that made the environment still lives.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub(crate) async fn again(account: &Account) -> Result<Arc<Self>> {
        Self::with(account.clone(), None).await
    }

    async fn with(account: Account, keys: Option<Credentials>) -> Result<Arc<Self>> {
        if let Some(known) = known(&account) {
            return Ok(known);
        }
        let made = Arc::new(Self::connect(account.clone(), keys.map(SharedCredentialsProvider::new)).await?);
        let mut all = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let all = all.get_or_insert_default();
        // A lease has what was found: who removes must come by the same keys.
        all.insert(made.account.clone(), made.clone());
        all.insert(account, made.clone());
        Ok(made)
    }

    /// The clients that settings ask for, with what a control plane gives.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub(crate) async fn by(control: Arc<dyn Control>, account: Account) -> Result<Self> {
        Self::connect(account, Some(SharedCredentialsProvider::new(Asked(control)))).await
    }

    async fn connect(mut account: Account, keys: Option<SharedCredentialsProvider>) -> Result<Self> {
        let config = load(&account, keys).await;
        let region = config.region().map(|region| region.as_ref().to_owned()).ok_or_else(|| {
            invalid("no region is named").with_help("write ec2.region, or set INSPECT_EC2_SANDBOX_REGION or AWS_REGION")
        })?;
        // Calls that no client makes go where the clients' do, and so do those of a later process that has the lease alone.
        account.endpoint = account.endpoint.or_else(|| config.endpoint_url().map(str::to_owned));
        account.region.get_or_insert_with(|| region.clone());
        let ssm = aws_sdk_ssm::Client::new(&config);
        let s3 = aws_sdk_s3::config::Builder::from(&config)
            .force_path_style(config.endpoint_url().is_some())
            // Objects are compared by a hash of our own, in the machine and here.
            .request_checksum_calculation(aws_sdk_s3::config::RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(aws_sdk_s3::config::ResponseChecksumValidation::WhenRequired)
            .build();
        Ok(Self {
            ec2: aws_sdk_ec2::Client::new(&config),
            credentials: config.credentials_provider(),
            poller: Poller::new(ssm.clone()),
            ssm,
            s3: aws_sdk_s3::Client::from_conf(s3),
            region,
            account,
            owner: OnceCell::new(),
        })
    }
}

fn known(account: &Account) -> Option<Arc<Aws>> {
    let all = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    all.as_ref()?.get(account).cloned()
}

fn keys(settings: &Settings) -> Option<Credentials> {
    let (key, secret) = (settings.access_key_id.as_ref()?, settings.secret_access_key.as_ref()?);
    Some(Credentials::new(key, secret, settings.session_token.clone(), None, "tierbox profile"))
}

/// What a control plane gives, for as long as it holds.
struct Asked(Arc<dyn Control>);

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asked(..)")
    }
}

impl ProvideCredentials for Asked {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            match self.0.credentials().await {
                Ok(Some(given)) => {
                    let (key, secret) = (given.access_key_id, given.secret_access_key);
                    Ok(Credentials::new(key, secret, given.session_token, given.expires, "control plane"))
                }
                Ok(None) => Err(CredentialsError::not_loaded("the control plane gives no credentials any more")),
                Err(error) => Err(CredentialsError::provider_error(error)),
            }
        })
    }
}

async fn load(account: &Account, keys: Option<SharedCredentialsProvider>) -> SdkConfig {
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    // What may be tried again is decided by who calls: a command must not be sent twice behind its back.
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts());
    if let Some(region) = &account.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = &account.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(endpoint) = &account.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    match (keys, &account.profile) {
        (Some(keys), _) => loader.credentials_provider(keys).load().await,
        (None, Some(profile)) => of_profile(&loader.load().await, profile),
        (None, None) => loader.load().await,
    }
}

/// The same with a profile's credentials and no other: in the usual chain, keys in the environment go before it.
fn of_profile(config: &SdkConfig, profile: &str) -> SdkConfig {
    let mut by = ProviderConfig::without_region().with_region(config.region().cloned());
    if let Some(http) = config.http_client() {
        by = by.with_http_client(http);
    }
    let provider = ProfileFileCredentialsProvider::builder().configure(&by).profile_name(profile).build();
    config.to_builder().credentials_provider(SharedCredentialsProvider::new(provider)).build()
}

/// How long one call may take: none of them waits for anything.
fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(Duration::from_secs(5)).operation_attempt_timeout(Duration::from_secs(60)).build()
}

/// Runs something on the driver, whose runtime every connection belongs to: a caller's may end at any time.
///
/// # Errors
/// Its own; `Internal` if it panicked.
pub(crate) async fn driven<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let running = tierbox_guest::driver::handle()?.spawn(work);
    let broken = |_| Err(Error::new(ErrorKind::Internal, "call AWS", "the call panicked").with_backend(BACKEND));
    running.await.unwrap_or_else(broken)
}
