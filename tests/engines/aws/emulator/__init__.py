"""EC2, SSM Run Command and S3 for tests: moto's control plane, and machines in which commands really run."""
