"""Where the time goes: bundles measured bucket by bucket, policy by policy, and beside other accelerators."""
