"""A Django app. `INSTALLED_APPS += ["walrust.django"]` loads walrust when Django starts.

Which database goes where is said in walrust.toml, in WALRUST_REPLICA, or in the settings, by alias:

    WALRUST = {"default": {"replica": "s3://bucket/app", "interval": "5s"}}
"""
