"""AWS::S3::BucketPolicy for CloudFormation, which moto lacks; and policies of endpoints as the JSON that they are."""
import json


def hook_cloudformation():
    from moto.core.common_models import CloudFormationModel
    from moto.s3.models import s3_backends

    class BucketPolicy(CloudFormationModel):
        def __init__(self, bucket):
            self.physical_resource_id = f"{bucket}-policy"

        @staticmethod
        def cloudformation_name_type():
            return ""

        @staticmethod
        def cloudformation_type():
            return "AWS::S3::BucketPolicy"

        @classmethod
        def create_from_cloudformation_json(cls, resource_name, cloudformation_json, account_id, region_name, **named):
            properties = cloudformation_json["Properties"]
            s3_backends[account_id]["aws"].put_bucket_policy(properties["Bucket"], json.dumps(properties["PolicyDocument"]).encode())
            return cls(properties["Bucket"])

        @classmethod
        def update_from_cloudformation_json(cls, original, resource_name, cloudformation_json, account_id, region_name):
            return cls.create_from_cloudformation_json(resource_name, cloudformation_json, account_id, region_name)

        @classmethod
        def delete_from_cloudformation_json(cls, resource_name, cloudformation_json, account_id, region_name):
            pass  # it goes with its bucket
    hook_endpoints()
    hook_bucket()
    hook_tls()
    return [BucketPolicy]


def hook_bucket():
    """What moto's template of a bucket leaves out: the public access block, and the rules of its objects' lives."""
    from moto.s3.models import FakeBucket, PublicAccessBlock
    create = FakeBucket.create_from_cloudformation_json.__func__

    def created(cls, resource_name, cloudformation_json, *rest, **named):
        bucket = create(cls, resource_name, cloudformation_json, *rest, **named)
        properties = cloudformation_json.get("Properties", {})
        block = properties.get("PublicAccessBlockConfiguration")
        if block:
            names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
            bucket.public_access_block = PublicAccessBlock(*(block.get(name, False) for name in names))
        rules = properties.get("LifecycleConfiguration", {}).get("Rules")
        if rules:
            bucket.set_lifecycle([rule_of_api(rule) for rule in rules])
        return bucket
    FakeBucket.create_from_cloudformation_json = classmethod(created)


def hook_tls():
    """Every request counts as one by TLS, which this server does not speak: moto knows no conditions, and would deny everything."""
    from moto.iam.access_control import IAMPolicy, PermissionResult
    from moto.s3.models import FakeBucket

    def permission(self, action, resource):
        policy = json.loads(self.policy or '{"Statement": []}')
        policy["Statement"] = [each for each in policy["Statement"] if "aws:SecureTransport" not in str(each.get("Condition"))]
        return IAMPolicy(json.dumps(policy)).is_action_permitted(action, resource) if policy["Statement"] else PermissionResult.NEUTRAL
    FakeBucket.get_permission = permission


def rule_of_api(rule):
    """A rule as the template spells it, as the API does."""
    return {"ID": rule.get("Id"), "Status": rule["Status"], "Filter": {"Prefix": rule.get("Prefix", "")},
            "Expiration": {"Days": str(rule["ExpirationInDays"])},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": str(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"])}}


def hook_endpoints():
    from moto.ec2.models.vpcs import VPCEndPoint
    create = VPCEndPoint.create_from_cloudformation_json.__func__

    def created(cls, *rest, **named):
        endpoint = create(cls, *rest, **named)
        if isinstance(endpoint.policy_document, dict):
            endpoint.policy_document = json.dumps(endpoint.policy_document)
        return endpoint
    VPCEndPoint.create_from_cloudformation_json = classmethod(created)
