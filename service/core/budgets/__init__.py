"""Budgets: amounts per day or month for a user, key, plan or model, or for everything.

`store` has the rows, `spend` compares them with the rollups, `outbox` has the alerts, `charges` and
`enforcement` refuse requests beyond a budget, `webhooks` delivers alerts.
"""
