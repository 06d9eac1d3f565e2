"""Write the OpenAPI document to standard output: `python -m tests.api.openapi.document`."""

import json
import sys

from service.core.settings import Settings
from service.main import create_app

if __name__ == "__main__":
    json.dump(create_app(Settings()).openapi(), sys.stdout)
