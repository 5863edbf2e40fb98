-- Who exists. `tenants` is not walled by tenant: it is what a name or id is looked up in, and holds no more than that, a
-- plan and settings. What belongs to a tenant (users, agents) is. Keys and revocations belong to the deployment.
do $$ begin
  if not exists (select from pg_roles where rolname = 'retinue_directory') then create role retinue_directory login; end if;
end $$;
alter role retinue_directory set search_path = directory;

create table directory.tenants (
  tenant_id text primary key,
  name text not null,
  plan text not null default 'pro',
  concurrent_run_count int not null default 0,  -- 0: the deployment's default
  preferred_runtime text not null default '',   -- empty: none
  weight double precision not null default 0,   -- 0: the usual share
  create_time timestamptz not null,
  constraint tenants_name_unique unique (name));

create table directory.users (
  tenant_id text not null,
  user_id text not null,
  name text not null,
  create_time timestamptz not null,
  primary key (tenant_id, user_id),
  constraint users_name_unique unique (tenant_id, name),
  constraint users_tenant_known foreign key (tenant_id) references directory.tenants);

create table directory.agents (
  tenant_id text primary key,                   -- one agent a tenant
  agent_id text not null,
  name text not null,
  persona text not null,
  model text not null default '',               -- empty: the deployment's default
  constraint agents_tenant_known foreign key (tenant_id) references directory.tenants);

create table directory.signing_keys (
  kid text primary key,
  private_key text not null,                    -- PKCS 8, PEM
  create_time timestamptz not null,
  retire_time timestamptz);                     -- null: it signs
-- Whoever is first makes the key; nobody makes a second one beside it.
create unique index one_key_signs on directory.signing_keys ((true)) where retire_time is null;

create table directory.revoked_tokens (
  jti text primary key,
  expire_time timestamptz not null,             -- then the token is refused anyway and the row is forgotten
  create_time timestamptz not null);
create index revoked_tokens_expiring on directory.revoked_tokens (expire_time);

alter table directory.users enable row level security;
alter table directory.users force row level security;
create policy users_of_tenant on directory.users
  using (tenant_id = (select nullif(current_setting('app.tenant_id', true), '')));
alter table directory.agents enable row level security;
alter table directory.agents force row level security;
create policy agents_of_tenant on directory.agents
  using (tenant_id = (select nullif(current_setting('app.tenant_id', true), '')));

grant usage on schema directory to retinue_directory;
grant select, insert, update on directory.tenants, directory.users, directory.agents to retinue_directory;
grant select, insert, update, delete on directory.signing_keys, directory.revoked_tokens to retinue_directory;
