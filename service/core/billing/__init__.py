"""Billing: wallets with a ledger; customers at Stripe, and their usage as meter events.

Modules: `ledger` (entries and balances of wallets), `credit` (holds of wallets beside those of
quotas), `wallets` and `postgres_wallets` (holds), `customers` (which user is billed as which
customer), `usage` (known cost by hour), `meter_events` (the outbox), `inbox` (events that Stripe
sends), `reconciliation` (with Stripe), `stripe` (the only importer of the library), `failures` (its
errors, as they concern us).
"""
