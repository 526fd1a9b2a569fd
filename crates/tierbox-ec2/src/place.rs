//! Where instances are to be: what a profile says of its network must belong together.

use aws_sdk_ec2::types::{Filter, RouteTable};
use tierbox_core::{Error, Result};

use crate::aws::Aws;
use crate::call::again;
use crate::settings::{Settings, invalid};

const TRIED: &str = "check network";

/// Checks that subnets and security group are in the VPC that is named, if one is.
///
/// # Errors
/// `InvalidProfile` naming what is elsewhere.
pub(crate) async fn check(aws: &Aws, settings: &Settings) -> Result<()> {
    let Some(vpc) = &settings.vpc else { return Ok(()) };
    if !settings.subnets.is_empty() {
        let ask = || aws.ec2.describe_subnets().set_subnet_ids(Some(settings.subnets.clone())).send();
        for subnet in again(TRIED, "ec2:DescribeSubnets", ask).await?.subnets.unwrap_or_default() {
            belongs("subnets", subnet.subnet_id.as_deref(), subnet.vpc_id.as_deref(), vpc)?;
        }
    }
    if let Some(group) = &settings.security_group {
        let ask = || aws.ec2.describe_security_groups().group_ids(group).send();
        for found in again(TRIED, "ec2:DescribeSecurityGroups", ask).await?.security_groups.unwrap_or_default() {
            belongs("security-group", found.group_id.as_deref(), found.vpc_id.as_deref(), vpc)?;
        }
    }
    Ok(())
}

/// The route tables of a VPC.
pub(crate) struct Tables(Vec<RouteTable>);

impl Tables {
    /// All pages of them.
    ///
    /// # Errors
    /// `Credentials`, `HostUnable`.
    pub(crate) async fn of(aws: &Aws, vpc: &str) -> Result<Self> {
        let filter = Filter::builder().name("vpc-id").values(vpc).build();
        let (mut all, mut next) = (Vec::new(), None::<String>);
        loop {
            let ask = || aws.ec2.describe_route_tables().filters(filter.clone()).set_next_token(next.clone()).send();
            let page = again(TRIED, "ec2:DescribeRouteTables", ask).await?;
            all.extend(page.route_tables.unwrap_or_default());
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(Self(all));
            }
        }
    }

    /// The one that holds for a subnet: its own, else the VPC's main one.
    pub(crate) fn of_subnet(&self, subnet: &str) -> Option<&RouteTable> {
        let own = self.0.iter().find(|table| table.associations().iter().any(|each| each.subnet_id() == Some(subnet)));
        own.or_else(|| self.0.iter().find(|table| table.associations().iter().any(|each| each.main() == Some(true))))
    }
}

fn belongs(key: &str, id: Option<&str>, own: Option<&str>, vpc: &str) -> Result<(), Error> {
    if own == Some(vpc) {
        return Ok(());
    }
    let (id, own) = (id.unwrap_or_default(), own.unwrap_or("no VPC"));
    Err(invalid(format!("{id} is in {own}, not in {vpc}")).with_help(format!("correct ec2.vpc or ec2.{key}")))
}
