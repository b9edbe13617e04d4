-- Owns one refusal: a query on a call that takes none. A query parameter of the name of a field would win over the path and
-- the body. A route switches it on where path and body can name every field.

function envoy_on_request(handle)
  local headers = handle:headers()
  if not headers:get(":path"):find("?", 1, true) then return end
  local request_id = headers:get("x-request-id") or ""
  -- Tells gateway/refusals.py that these words are whole.
  headers:replace("x-tollkeeper-refused", "true")
  handle:respond(
    { [":status"] = "400", ["content-type"] = "application/json", ["x-request-id"] = request_id },
    '{"code":3,"message":"query: this call takes none; give the fields in the path and the body","details":['
      .. '{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"INVALID_REQUEST","domain":"tollkeeper.gateway",'
      .. '"metadata":{}}]}'
  )
end
