"""Who calls the service: keys, quotas, roles, usage and webhooks."""
