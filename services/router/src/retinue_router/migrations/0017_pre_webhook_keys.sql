-- A webhook may be made under a key: asked again with the same one, it is answered again.
set local search_path = router;

alter table webhooks add column idem_key text, add column digest bytea;       -- of what was asked, without its secret
create unique index webhooks_key on webhooks (tenant_id, idem_key) where idem_key is not null;

-- What stays of a webhook, for a while, so that a repeated key does not make it again.
create table deleted_webhooks (
  tenant_id text not null, idem_key text not null, digest bytea not null, webhook_id text not null,
  delete_time timestamptz not null default clock_timestamp(), primary key (tenant_id, idem_key));
create index deleted_webhooks_by_time on deleted_webhooks (tenant_id, delete_time);
alter table router.deleted_webhooks enable row level security;
alter table router.deleted_webhooks force row level security;
create policy wall on router.deleted_webhooks using (tenant_id = (select nullif(current_setting('app.tenant_id', true), '')));
grant select, insert, update, delete on router.deleted_webhooks to retinue_router;

-- Works for whichever release removes a webhook.
create function keep_webhook_key_1() returns trigger language plpgsql as $$
begin
  delete from router.deleted_webhooks d where d.tenant_id = old.tenant_id and d.delete_time < clock_timestamp() - interval '30 days';
  insert into router.deleted_webhooks (tenant_id, idem_key, digest, webhook_id)
    values (old.tenant_id, old.idem_key, old.digest, old.webhook_id) on conflict do nothing;
  return null;
end $$;
create trigger keep_key after delete on webhooks for each row when (old.idem_key is not null) execute function keep_webhook_key_1();

-- What was made under a key: replay, with the secret as it was sealed | key_reused | deleted. No row: nothing was.
create function webhook_of_key_1(t text, p_key text, p_digest bytea)
returns table (outcome text, webhook_id text, secret bytea) language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  return query select case when x.digest = p_digest then 'replay' else 'key_reused' end, x.webhook_id,
      case when x.digest = p_digest then x.secret end
    from webhooks x where x.tenant_id = t and x.idem_key = p_key;
  if found then return; end if;
  return query select case when x.digest = p_digest then 'deleted' else 'key_reused' end, x.webhook_id, null::bytea
    from deleted_webhooks x where x.tenant_id = t and x.idem_key = p_key;
end $$;

-- As create_webhook_1, under a key where one is given: created | replay | key_reused | deleted | full (the tenant has p_max).
create function create_webhook_2(t text, p_webhook text, p_kind text, p_url text, p_host text, p_types text[], p_secret bytea, p_max int,
  p_key text, p_digest bytea)
returns table (outcome text, webhook_id text, secret bytea) language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  perform pg_advisory_xact_lock(hashtextextended('webhooks ' || t, 0));         -- of two at once, the second finds the first
  if p_key is not null then
    return query select * from webhook_of_key_1(t, p_key, p_digest);
    if found then return; end if;
  end if;
  if (select count(*) from webhooks x where x.tenant_id = t) >= p_max then
    return query select 'full', null::text, null::bytea; return;
  end if;
  insert into webhooks (tenant_id, webhook_id, kind, url, host, event_types, secret, idem_key, digest)
    values (t, p_webhook, p_kind, p_url, p_host, p_types, p_secret, p_key, p_digest);
  return query select 'created', p_webhook, p_secret;
end $$;
