-- Takes the token out of the headers and the query, once it is checked; whatever else stands there stays as it was.
-- Envoy's own mutation of queries decodes them on the way, so that an escaped "&" becomes another parameter.

local function unescape(name)
  return (name:gsub("%%(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end))
end

function envoy_on_request(handle)
  local headers = handle:headers()
  headers:remove("authorization")
  local path = headers:get(":path")
  local at = path and path:find("?", 1, true)
  if not at then return end
  local kept, found = {}, false
  for part in path:sub(at + 1):gmatch("[^&]+") do
    if unescape(part:match("^[^=]*")) == "access_token" then
      found = true
    else
      kept[#kept + 1] = part
    end
  end
  if found then
    local query = #kept > 0 and "?" .. table.concat(kept, "&") or ""
    headers:replace(":path", path:sub(1, at - 1) .. query)
  end
end
