-- A run stays with the runtime under which it has called tools.
set local search_path = router;

-- Mended: also once the calls have ended. Another runtime does not know of them, would begin the run anew, and make them again.
create or replace function tool_runtime_1(t text, p_run text) returns text language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  if exists (select from events x where x.tenant_id = t and x.run_id = p_run and x.type = 'tool.started')
    or exists (select from approvals x where x.tenant_id = t and x.run_id = p_run and x.state in ('allow_once', 'allow_always'))
  then return (select x.runtime from runs x where x.tenant_id = t and x.run_id = p_run); end if;
  return null;
end $$;
