"""The application controllers: they join a stream on behalf of an unchanged producer or consumer."""
