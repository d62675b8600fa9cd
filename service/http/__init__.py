"""HTTP requests in, answers out. Knows inference and sound.

    uvicorn
      protocol            connections in, requests out; slow and endless ones are cut. drain: at a signal
      websocket           the same for messages
    app                   composes what follows
      middleware          request id, api_keys (admin), counts, log line (request_record), span (tracing)
      trailing_slash      a path with a slash too many ─► a redirect
      fast_path           /embed and /classify skip the framework
      routes/             one file per resource
        json_body, parameters     query and JSON ─► parameters
        upload, request_body      body ─► clips, within the limits
        clip_request              model, clips ─► embeddings, within the deadline (cancellation)
        responses                 embeddings ─► JSON or npy
        stream_session            a stream's bytes ─► its messages; streams: how many
      error_response      any exception ─► its answer

server is what all routes share. openapi_document, schemas and openai_api say what /openapi.json documents.
"""
