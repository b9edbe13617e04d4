-- Owns the last word on an answer: the HTTP status that gRPC has no code for, and a refusal's body in the shape that the
-- caller's SDK expects.
--
-- It stands outside the transcoder, so it sees a refusal as `google.rpc.Status` in JSON, from a service or from Envoy
-- itself (gateway/refusals.py). It reads that JSON where it needs to, by scanning, and never has to unescape anything.
--
-- Headers from a service that decide, and that are taken off after it (gateway/answer_headers.py):
--   x-tollkeeper-http-status  the status to answer with
--   x-tollkeeper-reason       the answer is a refusal of ours; without it a bad status is a provider's own error, whose
--                             body goes to the caller as it came
--
-- An answer of status 200 without the first of them passes it by (gateway/http_filters.py): most calls end so.

local CODE_NAMES = {
  [0] = "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
  "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
  "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

-- The gRPC code of a refusal that came without one, by HTTP status.
local CODES = {
  [400] = 3, [401] = 16, [403] = 7, [404] = 5, [405] = 12, [408] = 4, [409] = 10, [413] = 3, [429] = 8, [431] = 3,
  [501] = 12, [503] = 14, [504] = 4,
}

-- What to say where nobody said anything.
local MESSAGES = {
  [400] = "The request is malformed.",
  [401] = "The credential is missing or not valid.",
  [403] = "This credential does not allow that.",
}

-- What another try may end otherwise: the SDKs know it by the status. All else below 500 they are told not to repeat, by the
-- header that OpenAI and Anthropic have for it: Claude Code asks for minutes with a key that is wrong.
local MAY_PASS = { [408] = true, [409] = true, [429] = true }

-- OpenAI's SDK goes by the status; LiteLLM as a client goes by the type of 401 and 403.
local OPENAI_TYPES = {
  [401] = "authentication_error", [402] = "insufficient_quota", [403] = "permission_error", [429] = "rate_limit_error",
}
local ANTHROPIC_TYPES = {
  [401] = "authentication_error", [402] = "billing_error", [403] = "permission_error", [404] = "not_found_error",
  [413] = "request_too_large", [429] = "rate_limit_error", [503] = "overloaded_error", [504] = "timeout_error",
}

-- The first string member `name`, still escaped. A text that is itself inside a string cannot be taken for a member: its
-- quotes are escaped.
local function member(json, name)
  local _, start = json:find('"' .. name .. '":"', 1, true)
  local stop = start and string_end(json, start + 1)
  return stop and json:sub(start + 1, stop - 1)
end

-- The first array member `name`, brackets included.
local function array(json, name)
  local _, start = json:find('"' .. name .. '":[', 1, true)
  local depth, at = 0, start
  while at do
    local character = json:sub(at, at)
    if character == '"' then
      at = string_end(json, at + 1)
      if at == nil then return nil end
    elseif character == "[" then
      depth = depth + 1
    elseif character == "]" then
      depth = depth - 1
      if depth == 0 then return json:sub(start, at) end
    end
    at = json:find('["%[%]]', at + 1)
  end
  return nil
end

local function error_info(reason)
  return '{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"' .. reason
    .. '","domain":"tollkeeper.gateway","metadata":{}}'
end

-- A refusal's parts, from whatever body came with it; strings are still escaped.
local function read(body, status)
  local refusal = { code = tonumber(body:match('^{"code":(%d+)')), message = member(body, "message") }
  if refusal.code == nil then
    refusal.code = CODES[status] or 2
    -- Not a google.rpc.Status: bare words, or nothing.
    refusal.message = escape(body)
  end
  if refusal.message == nil or refusal.message == "" then
    refusal.message = MESSAGES[status] or "The request was refused."
  end
  refusal.reason = member(body, "reason")
  refusal.details = array(body, "details") or "[]"
  if refusal.reason == nil then
    -- gRPC's own refusal, which has no more than a code: an unknown method, a message too large.
    refusal.reason = CODE_NAMES[refusal.code] or "UNKNOWN"
    refusal.details = "[" .. error_info(refusal.reason) .. "]"
  end
  refusal.field = member(body, "field")
  if refusal.field == nil and refusal.reason == "INVALID_REQUEST" then
    -- The transcoder begins with the path of the field that it could not read; nothing for the whole body.
    refusal.message = refusal.message:gsub("^: ", "")
    refusal.field = refusal.message:match("^([%w_%.%[%]]+): ")
    if refusal.field then
      refusal.details = refusal.details:sub(1, -2) .. ',{"@type":"type.googleapis.com/google.rpc.BadRequest",'
        .. '"fieldViolations":[{"field":"' .. refusal.field .. '","description":"' .. refusal.message .. '"}]}]'
    end
  end
  return refusal
end

local SHAPES = {}

function SHAPES.api(refusal)
  return '{"code":' .. refusal.code .. ',"message":"' .. refusal.message .. '","details":' .. refusal.details .. "}"
end

function SHAPES.openai(refusal, status)
  local kind = OPENAI_TYPES[status] or (status >= 500 and "server_error" or "invalid_request_error")
  local field = refusal.field and '"' .. refusal.field .. '"' or "null"
  return '{"error":{"message":"' .. refusal.message .. '","type":"' .. kind .. '","param":' .. field .. ',"code":"'
    .. refusal.reason:lower() .. '"}}'
end

function SHAPES.anthropic(refusal, status, request_id)
  local kind = ANTHROPIC_TYPES[status] or (status >= 500 and "api_error" or "invalid_request_error")
  return '{"type":"error","error":{"type":"' .. kind .. '","message":"' .. refusal.message .. '"},"request_id":"'
    .. escape(request_id or "") .. '"}'
end

function SHAPES.gemini(refusal, status)
  return '{"error":{"code":' .. status .. ',"message":"' .. refusal.message .. '","status":"'
    .. (CODE_NAMES[refusal.code] or "UNKNOWN") .. '","details":' .. refusal.details .. "}}"
end

-- The status a service asks for in its headers or trailers, or nil where it asks for none that is an error.
local function asked_status(metadata)
  local status = tonumber(metadata:get("x-tollkeeper-http-status") or "")
  return status and status >= 400 and status <= 599 and status or nil
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local asked = asked_status(headers)
  local providers_own = asked and headers:get("x-tollkeeper-reason") == nil
  if asked then
    headers:replace(":status", tostring(asked))
  end
  local status = tonumber(headers:get(":status"))
  if status < 400 or providers_own then
    return
  end

  -- Each of these may wait for Envoy, after which whatever was had from `handle` before is no longer valid.
  local body = handle:body(true)
  local words = body:getBytes(0, body:length())
  local trailers = handle:trailers()
  headers = handle:headers()
  -- A service that had sent its headers before it refused says the status in its trailers.
  local late = trailers and asked_status(trailers)
  if late then
    status = late
    headers:replace(":status", tostring(late))
    if trailers:get("retry-after") then
      headers:replace("retry-after", trailers:get("retry-after"))
    end
  end
  local wire = handle:filterContext():get("wire") or "api"
  local shape = SHAPES[wire]
  if wire == "anthropic" and headers:get("x-request-id") then
    headers:replace("request-id", headers:get("x-request-id"))
  end
  if wire ~= "api" and status < 500 and not MAY_PASS[status] then
    headers:replace("x-should-retry", "false")
  end
  handle:body(true):setBytes(shape(read(words, status), status, headers:get("x-request-id")))
  headers:replace("content-type", "application/json")
end
