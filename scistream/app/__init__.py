"""The application controllers: they say Hello for an unchanged producer or consumer."""
