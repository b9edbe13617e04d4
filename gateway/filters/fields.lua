-- Owns one refusal: a JSON body that has a field which its message has not, or one twice, or a list or a null where there
-- can be none.
-- The transcoder would drop in silence what is not there, and a misspelt `expiresAt` would give credit that never expires;
-- and nulls of a list, so that `"allowedModels": [null]` would give a key that may call every model.
--
-- The route says what there may be (gateway/request_fields.py): `root`, a message's name, and `messages`, for each
-- message its fields, by both their names, each with what it holds: the name of its own message, "=" for a text, number or
-- boolean, "" where any JSON may stand; "[]" stands before it where there may be a list of them. A field "*" is a map's: any
-- key.
--
-- `in_path` are the root's fields that the path says, each with the number of its segment: a body that says one otherwise
-- is refused. The transcoder would see it in one of a field's two spellings only, and let the path win in the other.
--
-- What is not JSON is refused too: the transcoder would take names without quotes and commas before a brace. What else a
-- value must be stays the transcoder's to say: also that one alone may stand for a list of one.

local MAX_DEPTH = 64
-- Of a body's values, members' and elements' alike: reading them holds up every other call of the same thread. The most
-- that a call takes, ten thousand prices, has a third of it.
local MAX_VALUES = 1000000
local MAX_NAMED = 20

local walk

-- Of each field's name what its two spellings have in common; kept, since the contracts' fields are few.
local spelt = {}

local function one_spelling(name)
  if spelt[name] == nil then spelt[name] = (name:gsub("_", ""):lower()) end
  return spelt[name]
end

-- Notes that what stands at `path`, which ends in a dot, is not as it must be.
local function note(search, path, description)
  if #search.wrong < MAX_NAMED then
    local field = path == "" and "body" or path:sub(1, -2)
    search.wrong[#search.wrong + 1] = { field = field, description = description }
  end
end

-- Whether the value at `at` is another than the path says. A null says none, and neither does a text without a character.
local function differs(json, at, said)
  if json:find("^null", at) then return false end
  local stop = json:byte(at) == 34 and string_end(json, at + 1)
  local text = stop and json:sub(at + 1, stop - 1)
  return text ~= said and text ~= ""
end

-- The members of an object whose brace is at `at`: the position after it, or nil.
local function members(json, at, fields, search, path, depth)
  local seen = {}
  at = json:find("%S", at + 1)
  if at and json:byte(at) == 125 then return at + 1 end
  while at do
    if json:byte(at) ~= 34 then return nil end
    local stop = string_end(json, at + 1)
    if stop == nil then return nil end
    local name = json:sub(at + 1, stop - 1)
    local below = path .. name .. "."
    local held = fields and (fields[name] or fields["*"])
    if held then
      local field = fields["*"] and name or one_spelling(name)
      if seen[field] then note(search, below, "stands twice") end
      seen[field] = true
    elseif fields then
      note(search, below, "there is no such field")
    end
    at = json:match("^%s*:%s*()", stop + 1)
    local said = depth == 0 and search.said[below]
    if said and at and differs(json, at, said) then note(search, below, "is another one in the path") end
    at = at and walk(json, at, held or "", search, below, depth + 1)
    at = at and json:find("%S", at)
    if at == nil then return nil end
    local byte = json:byte(at)
    if byte == 125 then return at + 1 end
    if byte ~= 44 then return nil end
    at = json:find("%S", at + 1)
  end
  return nil
end

-- The elements of an array whose bracket is at `at`: the position after it, or nil.
local function elements(json, at, held, search, path, depth)
  at = json:find("%S", at + 1)
  if at and json:byte(at) == 93 then return at + 1 end
  while at do
    if held ~= "" and json:find("^null", at) then note(search, path, "must have no null in its list") end
    at = walk(json, at, held, search, path, depth + 1)
    at = at and json:find("%S", at)
    if at == nil then return nil end
    local byte = json:byte(at)
    if byte == 93 then return at + 1 end
    if byte ~= 44 then return nil end
    at = json:find("%S", at + 1)
  end
  return nil
end

-- The value at `at`, where `held` may stand: the position after it, or nil where this is no JSON, or too deep or too much
-- to say.
function walk(json, at, held, search, path, depth)
  search.values = search.values + 1
  if depth > MAX_DEPTH or search.values > MAX_VALUES then return nil end
  local byte = json:byte(at)
  local one = held:match("^%[%](.*)") or held
  if byte == 123 then return members(json, at, search.messages[one], search, path, depth) end
  if byte == 91 then
    if held == one and held ~= "" then
      note(search, path, "must not be a list")
      one = ""
    end
    return elements(json, at, one, search, path, depth)
  end
  if byte == 34 then
    local stop = string_end(json, at + 1)
    return stop and stop + 1
  end
  return json:match("^[%w%.%+%-]+()", at)
end

local function refuse(handle, message, violations)
  -- Tells gateway/refusals.py that these words are whole.
  handle:headers():replace("x-tollkeeper-refused", "true")
  handle:respond(
    {
      [":status"] = "400",
      ["content-type"] = "application/json",
      ["x-request-id"] = handle:headers():get("x-request-id") or "",
    },
    '{"code":3,"message":"' .. message .. '","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo",'
      .. '"reason":"INVALID_REQUEST","domain":"tollkeeper.gateway","metadata":{}}' .. violations .. "]}"
  )
end

local function refuse_wrong(handle, wrong)
  local violations = {}
  for number, each in ipairs(wrong) do
    -- Cut, since a name may be as long as the body; as it stood there it is still escaped, so escaped once more.
    each.shown = escape(each.field:sub(1, 100))
    violations[number] = '{"field":"' .. each.shown .. '","description":"' .. each.description .. '"}'
  end
  refuse(
    handle,
    wrong[1].shown .. ": " .. wrong[1].description,
    ',{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[' .. table.concat(violations, ",") .. "]}"
  )
end

-- What the path says of the root's fields, by the name that `members` has for each.
local function said_in(path, in_path)
  local segments, said = {}, {}
  for segment in path:match("^[^?]*"):gmatch("[^/]+") do
    segments[#segments + 1] = unescape(segment)
  end
  for name, number in pairs(in_path) do
    said[name .. "."] = segments[number]
  end
  return said
end

function envoy_on_request(handle)
  -- Before the body is waited for: after that what was had from `handle` is no longer valid.
  local context = handle:filterContext()
  local root, messages = context:get("root"), context:get("messages")
  local said = said_in(handle:headers():get(":path"), context:get("in_path"))
  local body = handle:body()
  if body == nil or body:length() == 0 then return end
  local json = body:getBytes(0, body:length())
  local search = { messages = messages, wrong = {}, values = 0, said = said }
  local start = json:find("%S")
  local stop = start and walk(json, start, root, search, "", 0)
  if search.values > MAX_VALUES then
    refuse(handle, "The body has more than " .. MAX_VALUES .. " values.", "")
  elseif stop == nil or json:find("%S", stop) then
    refuse(handle, "The body is not JSON, or too deep.", "")
  elseif #search.wrong > 0 then
    refuse_wrong(handle, search.wrong)
  end
end
