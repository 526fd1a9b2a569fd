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
    return [BucketPolicy]


def hook_endpoints():
    from moto.ec2.models.vpcs import VPCEndPoint
    create = VPCEndPoint.create_from_cloudformation_json.__func__

    def created(cls, *rest, **named):
        endpoint = create(cls, *rest, **named)
        if isinstance(endpoint.policy_document, dict):
            endpoint.policy_document = json.dumps(endpoint.policy_document)
        return endpoint
    VPCEndPoint.create_from_cloudformation_json = classmethod(created)
