from .publish import publish_dataset as publish_dataset
from .publish import publish_model as publish_model
